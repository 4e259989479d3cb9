"""The build as Markdown, for pull requests: what the HTML page says, without its plots; details are folded."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from html import escape

from engineworks.builds.results import BuildResult
from engineworks.report.background import NOTHING, Background
from engineworks.report.blocks import Block, Bullets, Cell, Files, Fold, Log, Plot, Table, Words
from engineworks.report.sections import sections

FOLDED = ("latency", "sweep", "accuracy", "calibration", "memory", "trend", "steps", "provenance")
"""Sections that are folded in Markdown: a reviewer wants the verdicts first."""

MOST_LOG = 4000
"""Characters of a log: a comment takes 65,536 on GitHub."""


def render_markdown(result: BuildResult, background: Background = NOTHING) -> str:
    lines = [f"# {result.recipe}: {result.verdict}", "", summary(result)]
    links = " · ".join(f"[{link.name}]({link.url})" for link in background.links)
    lines += ["", links] if links else []
    for section in sections(result, background, plots=False):
        body = [line for block in section.blocks for line in _block(block)]
        if section.anchor in FOLDED:
            lines += ["", f"<details><summary><b>{escape(section.title)}</b></summary>", *body, "", "</details>"]
        else:
            lines += ["", f"## {section.title}", *body]
    return "\n".join(lines) + "\n"


def summary(result: BuildResult) -> str:
    """What came of it, in one line."""
    words = [e.word for e in result.engines] + ["refused"] * len(result.refused)
    counts = ", ".join(f"{words.count(w)} {w}" for w in dict.fromkeys(words))
    counts += f", {len(result.not_selected)} not part of this run" if result.not_selected else ""
    steps = result.steps
    return (
        f"{counts}. Steps: {steps.run} run, {steps.reused} reused, {steps.failed} failed, "
        f"in {result.seconds:.1f} s. MLflow run `{result.run}`."
    )


def _block(block: Block) -> Iterator[str]:
    if isinstance(block, Table):
        yield from _table(block)
    elif isinstance(block, Words):
        yield from ("", _words(block))
    elif isinstance(block, Bullets):
        yield ""
        yield from (f"- {_words(item)}" for item in block.items)
    elif isinstance(block, Log):
        text = block.text if len(block.text) <= MOST_LOG else "…" + block.text[-MOST_LOG:]
        yield from ("", "```", text.replace("```", "'''"), "```")
    elif isinstance(block, Fold):
        yield from ("", f"<details{' open' if block.open else ''}><summary>{_summary(block.summary)}</summary>")
        yield from (line for inner in block.blocks for line in _block(inner))
        yield from ("", "</details>")
    else:
        assert isinstance(block, Plot | Files)


def _table(found: Table) -> Iterator[str]:
    if found.title:
        yield from ("", f"**{found.title}**")
    yield ""
    yield _line(c.name or " " for c in found.columns)
    yield _line("---:" if c.number else "---" for c in found.columns)
    yield from (_line(_cell(c) for c in row) for row in found.rows)
    if found.below:
        yield from ("", found.below)


def _words(words: Words) -> str:
    strong = f"**{words.strong}** " if words.strong else ""
    return f"{strong}{_plain(words.text)}".rstrip()


def _plain(text: str) -> str:
    """A message of several lines in one paragraph; its own markup is none."""
    return " ".join(text.split()).replace("<", "&lt;")


def _summary(cells: Iterable[Cell]) -> str:
    return " ".join(f"<code>{escape(c.text)}</code>" if c.code else escape(c.text) for c in cells if c.text)


def _cell(cell: Cell) -> str:
    text = " ".join(cell.text.split()).replace("|", "\\|").replace("<", "&lt;")
    return f"`{text}`" if cell.code and text else text


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"
