"""The build as Markdown."""

from __future__ import annotations

from engineworks.report.comparison import comparison_tables
from engineworks.report.figures import remarks, tables
from engineworks.report.ladder import ladder_tables
from engineworks.report.rows import HEADINGS, notes_of, rows
from engineworks.results import BuildResult


def render_markdown(result: BuildResult) -> str:
    lines = [f"# {result.recipe}", "", _summary(result), "", _line(HEADINGS), _line(["---"] * len(HEADINGS))]
    lines += [_line(row.cells) for row in rows(result)]
    for ladder in ladder_tables(result.ladder):
        lines += ["", f"## Ladder of {ladder.target}", "", ladder.sentence, ""]
        lines += [_line(ladder.headings), _line(["---"] * len(ladder.headings)), *map(_line, ladder.rows)]
        lines += [line for note in ladder.notes for line in ("", note)]
    for compared in comparison_tables(result.comparison):
        lines += ["", f"## {compared.title}", "", _line(compared.headings), _line(["---"] * len(compared.headings))]
        lines += map(_line, compared.rows)
    lines += _calibration(result)
    if notes := notes_of(result):
        lines += ["", "## Notes", "", *(f"- **note** {sentence}" for sentence in notes)]
    for engine in result.engines:
        if engine.checks:
            lines += ["", f"## {engine.id}: {engine.word}", ""]
            lines += [f"- **{c.verdict}** {c.name}: {c.words}" for c in engine.checks]
        for table in tables(engine):
            lines += ["", _line(table.headings), _line(["---"] * len(table.headings))]
            lines += [*map(_line, table.rows), *(["", table.below] if table.below else [])]
        if found := list(remarks(engine)):
            lines += ["", *(f"- {remark}" for remark in found)]
        if engine.failure:
            lines += ["", f"## {engine.id}: failed in {engine.failure.step}", "", engine.failure.message]
    return "\n".join(lines) + "\n"


def _calibration(result: BuildResult) -> list[str]:
    """What the ranges are worth, with everything that makes them doubtful."""
    lines = ["", "## Calibration", ""] if result.calibration else []
    for health in result.calibration:
        lines.append(f"- {health.step}: {health.sentence()}")
        lines += [f"- **warning** {sentence}" for sentence in health.warnings]
    return lines


def _summary(result: BuildResult) -> str:
    words = [e.word for e in result.engines]
    counts = ", ".join(f"{words.count(w)} {w}" for w in dict.fromkeys(words))
    steps = result.steps
    return (
        f"{counts}. Steps: {steps.run} run, {steps.reused} reused, {steps.failed} failed, "
        f"in {result.seconds:.1f} s. MLflow run `{result.run}`."
    )


def _line(cells: tuple[str, ...] | list[str]) -> str:
    return "| " + " | ".join(c.replace("|", "\\|") for c in cells) + " |"
