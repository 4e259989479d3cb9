"""The whole report in its order: what matters first."""

from __future__ import annotations

from engineworks.builds.results import BuildResult
from engineworks.report.accuracy import accuracy_section
from engineworks.report.background import NOTHING, Background
from engineworks.report.blocks import Cell, Column, Section, Table, blocks_of
from engineworks.report.calibration import calibration_section
from engineworks.report.changes import changes_section
from engineworks.report.choice import choice_section
from engineworks.report.comparison import comparison_tables
from engineworks.report.provenance import provenance_section
from engineworks.report.speed import latency_section, memory_section, sweep_section
from engineworks.report.steps_section import steps_section
from engineworks.report.trend import trend_section
from engineworks.report.verdict_section import verdict_section

_TEXTS = {"framework", "precision", "note"}


def sections(result: BuildResult, background: Background = NOTHING, *, plots: bool) -> list[Section]:
    """plots: with those that only HTML can show."""
    found = [
        verdict_section(result),
        changes_section(result, background),
        _comparison(result),
        latency_section(result, background, plots=plots),
        sweep_section(result, background, plots=plots),
        accuracy_section(result, background),
        choice_section(result, plots=plots),
        calibration_section(result),
        memory_section(result),
        trend_section(result, background, plots=plots),
        steps_section(result, plots=plots),
        provenance_section(result, background),
    ]
    return [one for one in found if one is not None and one.blocks]


def _comparison(result: BuildResult) -> Section | None:
    """Frameworks side by side."""
    found = []
    for shown in comparison_tables(result.comparison):
        columns = tuple(Column(h, number=h not in _TEXTS) for h in shown.headings)
        last = len(shown.headings) - 1
        rows = tuple(
            tuple(Cell(text, tone="muted" if i == last else "") for i, text in enumerate(row)) for row in shown.rows
        )
        found.append(Table(columns, rows, shown.title, marked=shown.best))
    return Section("frameworks", "Beside other frameworks", blocks_of(found), brief="Frameworks") if found else None
