"""The quality of the calibrations: warnings, figures, and the worst tensors."""

from __future__ import annotations

from collections.abc import Iterator

from engineworks.builds.calibration_health import CalibrationHealth
from engineworks.builds.results import BuildResult
from engineworks.model.calibrate.report import CalibrationReport
from engineworks.report.blocks import Block, Bullets, Cell, Column, Section, Text, blocks_of, number, table


def calibration_section(result: BuildResult) -> Section | None:
    if not result.calibration:
        return None
    return Section("calibration", "Calibration", blocks_of(*(_one(health) for health in result.calibration)))


def _one(health: CalibrationHealth) -> Iterator[Block | None]:
    yield Text(health.message() + ".", strong=health.step)
    if health.report.warnings:
        yield Bullets(tuple(Text(w, tone="inconclusive", strong="warning") for w in health.report.warnings))
    else:
        yield Text("No warnings.", tone="pass")
    yield _tensors(health.report)
    yield _inputs(health.report)


def _tensors(report: CalibrationReport) -> Block | None:
    """The worst of each kind, side by side."""
    kinds = ((report.saturated, "clipped", 3), (report.unused, "codes unused", 0), (report.moved, "moved at last", 1))
    names = list(dict.fromkeys(name for spread, _, _ in kinds for name in spread.largest))
    columns = [Column("tensor"), *(Column(heading, number=True) for _, heading, _ in kinds)]
    rows = [
        [Cell(name, code=True), *(_share(spread.largest.get(name), digits) for spread, _, digits in kinds)]
        for name in names
    ]
    below = (
        "clipped: part of the values beyond the range; unused: of the 255 codes; moved: by the last fifth of the "
        "samples. The worst of each kind; blank: not among the worst."
    )
    return table(columns, rows, title="worst tensors", below=below)


def _share(value: float | None, digits: int) -> Cell:
    return Cell("") if value is None else Cell(f"{value:.{digits}%}", sort=value, share=min(1.0, value))


def _inputs(report: CalibrationReport) -> Block | None:
    keys = ("minimum", "maximum", "mean", "std")
    columns = [Column("input"), Column("samples", number=True), *(Column(k, number=True) for k in keys)]
    rows = [
        [Cell(name, code=True), number(statistics.samples, 0), *(number(getattr(statistics, k), 4) for k in keys)]
        for name, statistics in report.inputs.items()
    ]
    return table(columns, rows, title="calibration data")
