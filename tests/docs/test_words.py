"""The documentation and the page's template keep to plain words and short sentences."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
PAGES = (
    REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *sorted((REPOSITORY / "docs").glob("*.md")),
    *sorted((REPOSITORY / "engineworks").rglob("*.j2")),
)  # fmt: skip
GENERATED = ("recipe-reference.md", "targets.md")
"""Their words come from the recipe's models and from the backends."""

LONG_SENTENCES = ("choosing-a-precision.md", "gates.md", "page.html.j2", "scorecard.html.j2")
"""Pages whose formulas and lists of conditions make long sentences, and the templates, which are no prose."""

MAX_WORDS = 30

DIALECT = re.compile(
    r"\b(can not|anew|gravest|foretold|phoned|stands? twice|stands? on|held (?:against|to)|says nothing of|what came of"
    r"|what there is|nobody|anybody|mend(?:ed|s)?|kin|beware|by lot|(?:in|by) turns|at hand|let through|one's own|of ours)\b",
    re.I,
)


def prose(text: str) -> str:
    """Markdown without code blocks, comments, code spans and the addresses of links; a code span counts as a word."""
    text = re.sub(r"^(\s*)```.*?^\s*```", "", text, flags=re.M | re.S)
    text = re.sub(r"<!--.*?-->", "", text, flags=re.S)
    text = re.sub(r"`[^`\n]*`", "code", text)
    return re.sub(r"\]\([^)]*\)", "]", text)


def messages(text: str) -> list[str]:
    """Sentences of paragraphs and of single list items; headings, tables and quotations are none."""
    kept, block = [], []
    for line in [*prose(text).splitlines(), ""]:
        starts = re.match(r"\s*(- |\d+\. )", line)
        if not line.strip() or line.startswith(("#", "|", ">")) or starts:
            kept.append(" ".join(block))
            block = []
        if line.strip() and not line.startswith(("#", "|", ">")):
            block.append(line.strip())
    return [s for text in kept for s in re.split(r"(?<=[.!?:])\**\s+(?=[A-Z*\"(\[]|code)", text) if s]


@pytest.mark.parametrize("page", [p for p in PAGES if p.name not in GENERATED], ids=lambda p: p.name)
def test_words_are_those_of_the_field(page: Path) -> None:
    found = [
        (m[0], line.strip())
        for line in prose(page.read_text(encoding="utf-8")).splitlines()
        for m in DIALECT.finditer(line)
    ]
    assert found == []


@pytest.mark.parametrize(
    "page", [p for p in PAGES if p.name not in (*LONG_SENTENCES, *GENERATED)], ids=lambda p: p.name
)
def test_sentences_are_short(page: Path) -> None:
    every = messages(page.read_text(encoding="utf-8"))
    assert every
    long = [s for s in every if len(s.split()) > MAX_WORDS]
    assert long == []


def test_the_tests_find_what_they_look_for() -> None:
    assert DIALECT.search(prose("The checks are held\nagainst it, and nobody can."))
    assert not DIALECT.search(prose("`nobody`\n```sh\nanew\n```\n[page](nobody.md)"))
    assert messages("# Title\n\nOne is short. Two\nis on two lines.\n\n- item\n- other\n") == [
        "One is short.",
        "Two is on two lines.",
        "- item",
        "- other",
    ]
