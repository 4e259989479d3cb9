"""The verdict table in a few lines, with links: for Prefect's artifact and for the descriptions of MLflow's runs."""

from __future__ import annotations

from collections.abc import Sequence

from engineworks.builds.results import BuildResult, EngineResult
from engineworks.report.background import Link
from engineworks.report.rows import HEADINGS, rows
from engineworks.report.text import summary

NOTE_CHARS = 4800
"""A description in MLflow takes 5000; what is left of the table is counted."""

_SHOWN = [HEADINGS.index(h) for h in ("engine", "verdict", "metric", "p50 ms", "samples/s", "MiB", "why")]


def verdict_table(result: BuildResult, links: Sequence[Link], *, most_chars: int | None = None) -> str:
    """Markdown. most_chars: rows that go beyond are left out and counted."""
    linked = " · ".join(f"[{link.name}]({link.url})" for link in links)
    head = [f"**{result.recipe}: {result.verdict}**", "", summary(result), *(["", linked] if linked else []), ""]
    head += [_line([HEADINGS[i] for i in _SHOWN]), _line(["---"] * len(_SHOWN))]
    lines = [_line([row.cells[i] for i in _SHOWN]) for row in rows(result)]
    kept = list(lines)
    while most_chars is not None and kept and len("\n".join([*head, *kept])) > most_chars - 60:
        kept.pop()
    rest = len(lines) - len(kept)
    return "\n".join([*head, *kept, *(["", f"and {rest} more in the report"] if rest else [])])


def engine_note(engine: EngineResult, report: str) -> str:
    """What an engine's run says of itself. report: address of the build's report, '' where there is none."""
    lines = [f"**{engine.word}**" + (f", failed in {engine.failure.step}" if engine.failure else "")]
    if engine.failure:
        lines.append(engine.failure.message)
    lines += [f"- {c.verdict}, {c.name}: {c.words}" for c in engine.checks if c.verdict != "pass"]
    lines += [f"[report of the build]({report})"] if report else []
    text = "\n\n".join(lines)
    return text if len(text) <= NOTE_CHARS else text[: NOTE_CHARS - 1] + "…"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(" ".join(c.split()).replace("|", "\\|") for c in cells) + " |"
