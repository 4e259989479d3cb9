"""The verdict table in a few lines, with links: for Prefect's artifact and for the descriptions of MLflow's runs."""

from __future__ import annotations

from collections.abc import Sequence

from engineworks.builds.results import BuildResult, EngineResult
from engineworks.report.answer import may_ship
from engineworks.report.background import Link
from engineworks.report.grouping import groups
from engineworks.report.markdown import table_lines
from engineworks.report.rows import COLUMNS, HEADINGS, rows
from engineworks.report.text import summary

NOTE_CHARS = 4800
"""A description in MLflow holds 5000 characters; the rows that do not fit are counted."""

_SHOWN = [index for index, column in enumerate(COLUMNS) if column.brief]


def verdict_table(result: BuildResult, links: Sequence[Link], *, most_chars: int | None = None) -> str:
    """Markdown. most_chars: the rows beyond it are omitted and counted."""
    linked = " · ".join(f"[{link.name}]({link.url})" for link in links)
    answer = f"**Ship {result.recipe}? {may_ship(result).text}**"
    head = [answer, "", summary(result), *(["", linked] if linked else []), ""]
    shared = groups(result)
    grouped = {engine for group in shared for engine in group.engines}
    cells = [row.cells for row in rows(result) if row.cells[0] not in grouped]
    columns = [i for i in _SHOWN if any(row[i] for row in cells)]
    table = table_lines((HEADINGS[i] for i in columns), ([row[i] for i in columns] for row in cells)) if cells else []
    head, lines = head + table[:2], table[2:]
    kept = list(lines)
    shared_lines = [f"\n{group.message}" for group in shared]
    while most_chars is not None and kept and len("\n".join([*head, *kept, *shared_lines])) > most_chars - 60:
        kept.pop()
    rest = len(lines) - len(kept)
    return "\n".join([*head, *kept, *(["", f"and {rest} more in the report"] if rest else []), *shared_lines])


def engine_note(engine: EngineResult, report: str) -> str:
    """The description of an engine's run. report: address of the build's report, '' where there is none."""
    lines = [f"**{engine.status}**" + (f", failed in {engine.failure.step}" if engine.failure else "")]
    if engine.failure:
        lines.append(engine.failure.message)
    lines += [f"- {c.verdict}, {c.name}: {c.text}" for c in engine.checks if c.verdict != "pass"]
    lines += [f"[report of the build]({report})"] if report else []
    text = "\n\n".join(lines)
    return text if len(text) <= NOTE_CHARS else text[: NOTE_CHARS - 1] + "…"
