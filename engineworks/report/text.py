"""The build as Markdown, for pull requests: the HTML page without its plots, details folded."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from html import escape

from engineworks.builds.results import BuildResult
from engineworks.report.answer import may_ship
from engineworks.report.background import NOTHING, Background
from engineworks.report.blocks import Block, Bullets, Cell, Files, Fold, Log, Plot, Table, Text
from engineworks.report.markdown import cell as one_line
from engineworks.report.markdown import line
from engineworks.report.sections import sections

FOLDED = ("latency", "sweep", "accuracy", "calibration", "memory", "trend", "steps", "provenance")
"""Sections that are folded in Markdown: a reviewer wants the verdicts first."""

MOST_LOG = 4000
"""Characters of a log: a comment takes 65,536 on GitHub."""


def render_markdown(result: BuildResult, background: Background = NOTHING) -> str:
    lines = [f"# {result.recipe}: {result.verdict}", "", f"**May I ship it? {may_ship(result).text}**", ""]
    lines.append(summary(result))
    links = " · ".join(f"[{link.name}]({link.url})" for link in background.links)
    lines += ["", links] if links else []
    for section in sections(result, background, plots=False):
        body = [text for block in section.blocks for text in _block(block)]
        if section.anchor in FOLDED:
            lines += ["", f"<details><summary><b>{escape(section.title)}</b></summary>", *body, "", "</details>"]
        else:
            lines += ["", f"## {section.title}", *body]
    return "\n".join(lines) + "\n"


def summary(result: BuildResult) -> str:
    """The verdicts and steps in one line."""
    statuses = [e.status for e in result.engines] + ["refused"] * len(result.refused)
    counts = ", ".join(f"{statuses.count(w)} {w}" for w in dict.fromkeys(statuses))
    counts += f", {len(result.not_selected)} not part of this run" if result.not_selected else ""
    steps = result.steps
    return (
        f"{counts}. Steps: {steps.run} run, {steps.reused} reused, {steps.failed} failed, "
        f"in {result.seconds:.1f} s. MLflow run `{result.run}`."
    )


def _block(block: Block) -> Iterator[str]:
    if isinstance(block, Table):
        yield from _table(block)
    elif isinstance(block, Text):
        yield from ("", _inline(block))
    elif isinstance(block, Bullets):
        yield ""
        yield from (f"- {_inline(item)}" for item in block.items)
    elif isinstance(block, Log):
        text = block.text if len(block.text) <= MOST_LOG else "…" + block.text[-MOST_LOG:]
        yield from ("", "```", text.replace("```", "'''"), "```")
    elif isinstance(block, Fold):
        yield from ("", f"<details{' open' if block.open else ''}><summary>{_summary(block.summary)}</summary>")
        yield from (text for inner in block.blocks for text in _block(inner))
        yield from ("", "</details>")
    else:
        assert isinstance(block, Plot | Files)


def _table(table: Table) -> Iterator[str]:
    if table.title:
        yield from ("", f"**{table.title}**")
    yield ""
    yield line(c.name or " " for c in table.columns)
    yield line("---:" if c.number else "---" for c in table.columns)
    yield from (line(_cell(c) for c in row) for row in table.rows)
    if table.below:
        yield from ("", table.below)


def _inline(text: Text) -> str:
    """A message of several lines in one paragraph, its markup escaped."""
    strong = f"**{text.strong}** " if text.strong else ""
    plain = " ".join(text.text.split()).replace("<", "&lt;")
    return f"{strong}{plain}".rstrip()


def _summary(cells: Iterable[Cell]) -> str:
    return " ".join(f"<code>{escape(c.text)}</code>" if c.code else escape(c.text) for c in cells if c.text)


def _cell(cell: Cell) -> str:
    text = one_line(cell.text).replace("<", "&lt;")
    return f"`{text}`" if cell.code and text else text
