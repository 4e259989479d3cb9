"""Accuracy: the task metric and every output, and every shape that the engine was compared at as it is served."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from engineworks.builds.results import BuildResult, EngineResult
from engineworks.measure.served_checks import row_tolerance
from engineworks.measure.slices import Slice, read_slices
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
from engineworks.report.figures import dims_text
from engineworks.report.palette import precision_of, short

LOUD = 0.6
"""Part of the limit from which an error stands out."""


def accuracy_section(result: BuildResult, background: Background) -> Section | None:
    compared = [e for e in result.engines if e.accuracy]
    if not compared:
        return None
    return Section(
        "accuracy",
        "Accuracy",
        blocks_of(_metric(compared), _slices(compared), _outputs(compared), _shapes(compared, background)),
    )


def _metric(compared: list[EngineResult]) -> Block | None:
    columns = [
        Column("engine"), Column("metric"), Column("engine's", number=True), Column("fp32 reference's", number=True),
        Column("ratio", number=True), Column("samples", number=True),
    ]  # fmt: skip
    rows = []
    for engine in compared:
        metric = (engine.accuracy or {}).get("metric")
        if metric:
            name = f"{metric['name']}{' ↓' if metric.get('lower_is_better') else ''}"
            kind = "" if metric.get("kind") == "labels" else f" ({metric.get('kind')})"
            rows.append([
                engine_cell(engine.id), Cell(name + kind), number(metric["engine"], 5),
                number(metric["reference"], 5), number(metric["ratio"], 5), number(metric.get("samples"), 0),
            ])  # fmt: skip
    return table(columns, rows, title="task metric")


def _slices(compared: list[EngineResult]) -> Block | None:
    """One row per slice and engine, the worst first; the ratio is shaded by what is lost of fp32's quality."""
    columns = [
        Column("engine"), Column("slice"), Column("engine's", number=True), Column("95% interval", number=True),
        Column("fp32 reference's", number=True), Column("ratio", number=True),
        Column("at least", number=True, hint="lower 95% bound of the ratio"),
        Column("at most", number=True, hint="upper 95% bound of the ratio, for all slices together"),
        Column("samples", number=True), Column("note"),
    ]  # fmt: skip
    found = [(engine, s) for engine in compared for s in read_slices((engine.accuracy or {}).get("metric"))]
    rows = [
        [
            engine_cell(engine.id), Cell(s.name, code=True), number(s.engine, 5),
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


def _outputs(compared: list[EngineResult]) -> Block | None:
    columns = [
        Column("engine"), Column("output"), Column("cosine", number=True), Column("SQNR dB", number=True),
        Column("largest error", number=True), Column("mean error", number=True), Column("NaN or inf", number=True),
        Column("worst row", number=True, hint="cosine of the sample that is furthest off"),
    ]  # fmt: skip
    rows = []
    for engine in compared:
        for name, output in (engine.accuracy or {})["outputs"].items():
            worst = output.get("worst_row_cosine")
            at = output.get("worst_row")
            rows.append([
                engine_cell(engine.id), Cell(name, code=True), _cosine(output["cosine"]),
                number(output["sqnr_db"], 1), _scientific(output["max_abs"]), _scientific(output["mean_abs"]),
                Cell(str(output["nonfinite"]), tone="fail" if output["nonfinite"] else ""),
                Cell(f"{worst:.5f} (sample {at})", sort=worst) if worst is not None else Cell(""),
            ])  # fmt: skip
    return table(columns, rows, title="every output, against the fp32 reference on the evaluation data")


def _cosine(value: float | None) -> Cell:
    return Cell("nan", tone="fail") if value is None else number(value, 6)


def _scientific(value: float | None) -> Cell:
    return (
        Cell("")
        if value is None
        else Cell(f"{value:.2e}" if 0 < abs(value) < 1e-3 else significant(value, 4), sort=value)
    )


def _shapes(compared: list[EngineResult], background: Background) -> Iterator[Block | None]:
    """One table per output: shapes down, engines across; each cell the largest error of a row, shaded by its limit."""
    served: dict[str, Mapping[str, Any]] = {e.id: (e.accuracy or {}).get("served") or {} for e in compared}
    engines = [e for e in compared if served[e.id].get("sequence") and served[e.id].get("rows")]
    for output in dict.fromkeys(name for e in engines for name in served[e.id]["rows"]):
        places = dict.fromkeys(_place(v) for e in engines for v in served[e.id]["sequence"])
        columns = [Column("profile"), Column("shape"), *(Column(short(e.id), number=True) for e in engines)]
        rows = [
            [Cell(profile), Cell(dims), *(_error(e, output, (profile, dims), background) for e in engines)]
            for profile, dims in places
        ]
        limits = ", ".join(
            f"{short(e.id)} {_limits(e, output, background)}" for e in engines if not _exact(served[e.id], output)
        )
        below = "Largest relative error of a row, at first and after warm-up, there and back."
        below += f" Limits: {limits}." if limits else " Samples whose answer differs."
        yield table(columns, rows, title=f"{output}, at every shape it was served at", below=below)
    if engines and any(served[e.id]["notes"] for e in engines):
        yield from (
            Text(f"not tried: {note}", tone="muted")
            for note in dict.fromkeys(n for e in engines for n in served[e.id]["notes"])
        )


def _place(visit: Mapping[str, Any]) -> tuple[str, str]:
    return str(visit["profile"]), dims_text(visit["dims"]) or "fixed"


def _limit(engine: EngineResult, output: str, visit: Mapping[str, Any], background: Background) -> float:
    limits = (background.resolved.get("accuracy") or {}).get("limits") or {}
    cosine = (limits.get(precision_of(engine.id)) or {}).get("cosine")
    return row_tolerance((engine.accuracy or {})["served"], visit, output, cosine).reference


def _limits(engine: EngineResult, output: str, background: Background) -> str:
    """The limit, or the smallest and largest where it differs by shape."""
    visits = (engine.accuracy or {})["served"]["sequence"]
    limits = dict.fromkeys(f"{n:.3g}" for n in sorted(_limit(engine, output, v, background) for v in visits))
    return " to ".join([*limits][:: max(1, len(limits) - 1)])


def _exact(served: Mapping[str, Any], output: str) -> bool:
    """Whether the output holds classes, counts or flags."""
    return any("wrong_samples" in record for v in served["sequence"] for record in _records(v, output))


def _records(visit: Mapping[str, Any], output: str) -> list[Mapping[str, Any]]:
    figures = visit["outputs"].get(output, {})
    return [record for phase in ("first", "later") for record in figures.get(phase, ())]


def _error(engine: EngineResult, output: str, place: tuple[str, str], background: Background) -> Cell:
    served = (engine.accuracy or {})["served"]
    visits = [v for v in served["sequence"] if _place(v) == place]
    if any("raised" in v for v in visits):
        return Cell("did not run", tone="fail", sort=float("inf"))
    records = [record for v in visits for record in _records(v, output)]
    if not records:
        return Cell("")
    if any(record["nonfinite"] for record in records):
        return Cell("NaN or inf", tone="fail", sort=float("inf"))
    if _exact(served, output):
        changed = {
            (str(v["lengths"]), s)
            for v in visits
            for record in _records(v, output)
            for s in record.get("wrong_samples", ())
        }
        return Cell(f"{len(changed)} differ" if changed else "0", sort=len(changed), heat=min(1.0, len(changed) / 4))
    worst = max(record["most"] for record in records)
    limit = min(_limit(engine, output, v, background) for v in visits)
    tone = "fail" if worst > limit else ""
    return Cell(
        "0" if not worst else f"{worst:.2e}" if worst < 1e-3 else f"{worst:.4f}",
        tone=tone,
        sort=worst,
        heat=min(1.0, worst / limit),
    )
