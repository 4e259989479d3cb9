"""Accuracy: the task metric and every output, and every shape that the engine was compared at as it is served."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from engineworks.builds.results import BuildResult
from engineworks.measure.accuracy_report import Accuracy
from engineworks.measure.served_checks import row_tolerance
from engineworks.measure.served_report import Served, ServedVisit
from engineworks.measure.slices import Slice
from engineworks.report.background import Background
from engineworks.report.blocks import (
    Block,
    Cell,
    Column,
    Section,
    Text,
    blocks_of,
    engine_cell,
    number,
    significant,
    table,
)
from engineworks.report.palette import precision_of, short
from engineworks.tensors import dims_text

Compared = Mapping[str, Accuracy]
"""Reports by engine."""


def accuracy_section(result: BuildResult, background: Background) -> Section | None:
    compared = {e.id: e.accuracy for e in result.engines if e.accuracy}
    if not compared:
        return None
    return Section(
        "accuracy",
        "Accuracy",
        blocks_of(
            _metric(compared),
            _slices(compared),
            _outputs(compared),
            _shapes(compared, background),
            Text("Limits that follow from these figures: engineworks limits RECIPE-FILE", tone="muted"),
        ),
    )


def _metric(compared: Compared) -> Block | None:
    columns = [
        Column("engine"), Column("metric"), Column("engine's", number=True), Column("fp32 reference's", number=True),
        Column("ratio", number=True), Column("samples", number=True),
    ]  # fmt: skip
    rows = []
    for engine, report in compared.items():
        metric = report.metric
        if metric:
            name = f"{metric.name}{' ↓' if metric.lower_is_better else ''}"
            kind = "" if metric.kind == "labels" else f" ({metric.kind})"
            rows.append([
                engine_cell(engine), Cell(name + kind), number(metric.engine, 5),
                number(metric.reference, 5), number(metric.ratio, 5), number(metric.samples, 0),
            ])  # fmt: skip
    return table(columns, rows, title="task metric")


def _slices(compared: Compared) -> Block | None:
    """One row per slice and engine, the worst first; the ratio is shaded by what is lost of fp32's quality."""
    columns = [
        Column("engine"), Column("slice"), Column("engine's", number=True), Column("95% interval", number=True),
        Column("fp32 reference's", number=True), Column("ratio", number=True),
        Column("at least", number=True, hint="lower 95% bound of the ratio"),
        Column("at most", number=True, hint="upper 95% bound of the ratio, for all slices together"),
        Column("samples", number=True), Column("note"),
    ]  # fmt: skip
    found = [(engine, s) for engine, r in compared.items() if r.metric for s in r.metric.slices]
    rows = [
        [
            engine_cell(engine), Cell(s.name, code=True), number(s.engine, 5),
            Cell("" if s.engine_low is None or s.engine_high is None else f"{s.engine_low:.3f} to {s.engine_high:.3f}"),
            number(s.reference, 5), _slice_ratio(s),
            number(s.low, 3), number(s.high, 3), number(s.samples, 0), Cell("lost" if s.lost else s.why),
        ]
        for engine, s in sorted(found, key=lambda pair: pair[1].ratio if pair[1].ratio is not None else -1.0)
    ]  # fmt: skip
    return table(columns, rows, title="task metric on every slice, worst first")


def _slice_ratio(one: Slice) -> Cell:
    if one.ratio is None:
        return Cell("" if one.why else "nan", tone="" if one.why else "fail")
    tone = "fail" if one.lost else ""
    return Cell(f"{one.ratio:.4f}", tone=tone, sort=one.ratio, heat=min(1.0, max(0.0, 1 - one.ratio)))


def _outputs(compared: Compared) -> Block | None:
    columns = [
        Column("engine"), Column("output"), Column("cosine", number=True), Column("SQNR dB", number=True),
        Column("largest error", number=True), Column("mean error", number=True), Column("NaN or inf", number=True),
        Column("worst row", number=True, hint="cosine of the sample that is furthest off"),
    ]  # fmt: skip
    rows = []
    for engine, report in compared.items():
        for name, output in report.outputs.items():
            worst = output.worst_row_cosine
            rows.append([
                engine_cell(engine), Cell(name, code=True), _cosine(output.cosine),
                number(output.sqnr_db, 1), _scientific(output.max_abs), _scientific(output.mean_abs),
                Cell(str(output.nonfinite), tone="fail" if output.nonfinite else ""),
                Cell(f"{worst:.5f} (sample {output.worst_row})", sort=worst) if worst is not None else Cell(""),
            ])  # fmt: skip
    return table(columns, rows, title="every output, against the fp32 reference on the evaluation data")


def _cosine(value: float | None) -> Cell:
    return Cell("nan", tone="fail") if value is None else number(value, 6)


def _scientific(value: float | None) -> Cell:
    if value is None:
        return Cell("")
    return Cell(f"{value:.2e}" if 0 < abs(value) < 1e-3 else significant(value, 4), sort=value)


def _shapes(compared: Compared, background: Background) -> Iterator[Block | None]:
    """One table per output: shapes down, engines across; each cell the largest error of a row, shaded by its limit."""
    engines = {e: r.served for e, r in compared.items() if r.served and r.served.sequence}
    for output in dict.fromkeys(name for served in engines.values() for name in served.rows):
        places = dict.fromkeys(_place(v) for served in engines.values() for v in served.sequence)
        cosines = {e: background.setting("accuracy", "limits", precision_of(e), "cosine") for e in engines}
        shown = {e: _Shown(served, output, cosines[e]) for e, served in engines.items()}
        columns = [Column("profile"), Column("shape"), *(Column(short(e), number=True) for e in engines)]
        rows = [
            [Cell(profile), Cell(dims), *(column.cell((profile, dims)) for column in shown.values())]
            for profile, dims in places
        ]
        limits = ", ".join(f"{short(e)} {column.limits()}" for e, column in shown.items() if not column.exact)
        below = "Largest relative error of a row, at first and after warm-up, there and back."
        below += f" Limits: {limits}." if limits else " Samples whose answer differs."
        yield table(columns, rows, title=f"{output}, at every shape it was served at", below=below)
    notes = dict.fromkeys(note for served in engines.values() for note in served.notes)
    yield from (Text(f"not tried: {note}", tone="muted") for note in notes)


def _place(visit: ServedVisit) -> tuple[str, str]:
    return visit.profile, dims_text(visit.dims) or "fixed"


@dataclass(frozen=True)
class _Shown:
    """One engine's column of an output's table. cosine: the recipe's limit."""

    served: Served
    output: str
    cosine: float | None

    @property
    def exact(self) -> bool:
        """Whether the output holds classes, counts or flags."""
        return any(record.wrong_samples is not None for record in self.served.records(self.output))

    def limits(self) -> str:
        """The limit, or the smallest and largest where it differs by shape."""
        limits = dict.fromkeys(f"{n:.3g}" for n in sorted(map(self._limit, self.served.sequence)))
        return " to ".join([*limits][:: max(1, len(limits) - 1)])

    def cell(self, place: tuple[str, str]) -> Cell:
        visits = [v for v in self.served.sequence if _place(v) == place]
        if any(v.raised for v in visits):
            return Cell("did not run", tone="fail", sort=float("inf"))
        records = [(v.lengths, record) for v in visits for record in v.of(self.output).records]
        if not records:
            return Cell("")
        if any(record.nonfinite for _, record in records):
            return Cell("NaN or inf", tone="fail", sort=float("inf"))
        if self.exact:
            changed = len({(lengths, s) for lengths, record in records for s in record.wrong_samples or ()})
            return Cell(f"{changed} differ" if changed else "0", sort=changed, heat=min(1.0, changed / 4))
        worst = max(record.most for _, record in records)
        limit = min(map(self._limit, visits))
        return Cell(
            "0" if not worst else f"{worst:.2e}" if worst < 1e-3 else f"{worst:.4f}",
            tone="fail" if worst > limit else "",
            sort=worst,
            heat=min(1.0, worst / limit),
        )

    def _limit(self, visit: ServedVisit) -> float:
        return row_tolerance(self.served, visit, self.output, self.cosine).reference
