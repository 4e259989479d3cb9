"""Latency, batch sweep and memory: plots over all engines, and each engine's own figures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from engineworks.builds.results import BuildResult, EngineResult
from engineworks.measure.latency_report import ShapeMeasurement
from engineworks.report.background import Background
from engineworks.report.blocks import (
    Block,
    Cell,
    Column,
    Fold,
    Plot,
    Section,
    Text,
    blocks_of,
    engine_cell,
    number,
    significant,
    table,
)
from engineworks.report.grouping import never_run
from engineworks.report.palette import by_target, colors, precision_of, short
from engineworks.report.plots import Curve, Distribution, latency_plot, sweep_plot
from engineworks.report.values import LATENCY, latency_table, remarks, shapes_of, streams_table, sweep_table
from engineworks.tensors import dims_text

LEGEND = "Filled: distribution of the timed runs (root of their number). Line: median; dashes: p99."


def latency_section(result: BuildResult, background: Background, *, plots: bool) -> Section | None:
    measured = [e for e in result.engines if shapes_of(e)]
    if not measured:
        return None
    names = dict.fromkeys(name for e in measured for name in shapes_of(e))
    drawn = [_plot(result, measured, name, background) for name in names] if plots else []
    blocks = blocks_of(
        Text(LEGEND, tone="muted") if plots else None,
        drawn, [_at_shape(measured, name) for name in names], _all_values(measured),
    )  # fmt: skip
    return Section("latency", "Latency", blocks)


def _title(name: str, measured: list[EngineResult]) -> str:
    dims = next((dims_text(shapes_of(e)[name].dims) for e in measured if name in shapes_of(e)), "")
    return f"{name} ({dims})" if dims else name


def _plot(result: BuildResult, measured: list[EngineResult], name: str, background: Background) -> Plot | None:
    color = colors(result)
    rows = [
        Distribution(
            short(e.id), color[precision_of(e.id)], s.samples, s.latency_ms_p50, s.latency_ms_p99
        )
        for e in measured
        if (s := shapes_of(e).get(name)) and isinstance(s.samples, tuple) and len(s.samples) > 1
    ]  # fmt: skip
    if not rows:
        return None
    title = _title(name, measured)
    budget = background.setting("performance", "budget", name, "p50_ms")
    caption = title + (f"; long dashes: the budget of the median, {budget:g} ms" if budget else "")
    return Plot(latency_plot(rows, f"Latency at {title}", budget_ms=budget), caption)


_NOT_ACROSS_ENGINES = ("p50 at 95%", "device p99 ms", "with copies p99 ms", "MiB")
_COLUMNS = tuple(column for column in LATENCY if column[0] not in _NOT_ACROSS_ENGINES)


def _at_shape(measured: list[EngineResult], name: str) -> Block | None:
    columns = [
        Column("engine"), *(Column(heading, number=True) for heading, _, _ in _COLUMNS),
        Column("median ±", number=True, hint="half of the median's 95% interval"), Column("warning"),
    ]  # fmt: skip
    rows = []
    for engine in measured:
        values = shapes_of(engine).get(name)
        if values is None:
            continue
        cells = [number(getattr(values, key), digits) for _, key, digits in _COLUMNS]
        bad = [*values.complaints, *values.notes]
        more = f" (and {len(bad) - 1} more below)" if len(bad) > 1 else ""
        warning = Cell(bad[0] + more if bad else "", tone="inconclusive")
        rows.append([engine_cell(engine.id), *cells, _half_width(values), warning])
    return table(columns, rows, title=_title(name, measured))


def _half_width(values: ShapeMeasurement) -> Cell:
    interval = values.median_interval
    if not interval or not values.latency_ms_p50:
        return Cell("")
    share = (interval[1] - interval[0]) / 2 / values.latency_ms_p50
    return Cell(f"{share:.2%}" if share < 0.1 else f"{share:.0%}", sort=share)


def _all_values(measured: list[EngineResult]) -> Fold | None:
    own = [fold for e in measured if (fold := _own(e)) is not None]
    summary = (Cell("Every figure and remark, by engine"), Cell(f"{len(own)} engines", tone="muted"))
    return Fold(summary, tuple(own)) if own else None


def _own(engine: EngineResult) -> Fold | None:
    """Everything measured on one engine, and the reasons not to trust it."""
    notes = list(remarks(engine))
    remarked = [Text(note, tone="muted") for note in notes]
    blocks = blocks_of(latency_table(engine), streams_table(engine), remarked)
    count = f"{len(notes)} remarks" if len(notes) > 1 else "1 remark" if notes else ""
    return Fold((Cell(engine.id, code=True), Cell(count, tone="muted")), blocks) if blocks else None


def sweep_section(result: BuildResult, background: Background, *, plots: bool) -> Section | None:
    swept = [e for e in result.engines if e.recommendation and e.latency and e.latency.sweep]
    if not swept:
        return None
    budget = background.setting("performance", "sweep", "latency_ms")
    drawn = list(_sweep_plots(result, swept, budget)) if plots else []
    columns = [Column("engine"), Column("batch", number=True), Column("why")]
    rows = []
    for engine in swept:
        assert engine.recommendation is not None
        batch = engine.recommendation.batch
        cell = Cell(str(batch)) if batch else Cell("none", tone="inconclusive")
        rows.append([engine_cell(engine.id), cell, Cell(f"Recommended: {engine.recommendation.message}.")])
    own = Fold((Cell("Every batch, by engine"),), blocks_of([block for e in swept for block in _sweep_of(e)]))
    return Section(
        "sweep",
        "Batch sweep",
        blocks_of(table(columns, rows, title="which batch to serve with"), drawn, own),
        brief="Sweep",
    )


def _sweep_of(engine: EngineResult) -> Iterator[Block | None]:
    yield Text("", strong=engine.id)
    yield sweep_table(engine)


def _sweep_plots(result: BuildResult, swept: list[EngineResult], budget: float | None) -> Iterator[Plot]:
    color = colors(result)
    for target, engines in by_target(swept):
        curves = []
        for engine in engines:
            points = engine.latency.points if engine.latency else ()
            if len(points) > 1 and engine.recommendation:
                curves.append(
                    Curve(
                        short(engine.id), color[precision_of(engine.id)], [p.batch for p in points],
                        [p.throughput_per_s for p in points], [p.latency_ms_p50 for p in points],
                        engine.recommendation.batch,
                    )
                )  # fmt: skip
        if curves:
            yield Plot(
                sweep_plot(curves, f"Batch sweep on {target}", budget_ms=budget), f"{target}; ringed: recommended"
            )


def memory_section(result: BuildResult) -> Section | None:
    """Sizes of all that were built, those of one size that never ran in one row; what loading and running takes."""
    built = [e for e in result.engines if e.sidecar]
    if not built:
        return None
    names = list(dict.fromkeys(name for e in built for name in shapes_of(e)))
    largest = max(e.bytes or 0 for e in built)
    most = max((s.memory_mib for e in built for s in shapes_of(e).values()), default=0.0)
    columns = [
        Column("engine"), Column("engine MiB", number=True), Column("load ms", number=True, hint="until the first run"),
        *(Column(f"{name}: MiB", number=True, hint="what loading and running the engine adds") for name in names),
        Column("of the device", number=True, hint="the largest of these, of the memory there is"),
        Column("build s", number=True),
    ]  # fmt: skip
    rows = []
    for engine, *others in _alike(built):
        latency = engine.latency
        used = [getattr(shapes_of(engine).get(name), "memory_mib", None) for name in names]
        total, peak = latency.memory_total_mib if latency else None, max((m for m in used if m), default=None)
        share = peak / total if peak and total else None
        seconds = engine.sidecar.build_seconds if engine.sidecar else None
        rows.append([
            Cell(f"{precision_of(engine.id)} on {1 + len(others)} targets", code=True) if others
            else engine_cell(engine.id),
            _bar((engine.bytes or 0) / 2**20, largest / 2**20),
            number(latency.load_ms if latency else None, 1), *(_bar(m, most, 1) for m in used),
            Cell(f"{share:.2%}", sort=share) if share is not None else Cell(""),
            Cell("") if others
            else Cell(significant(seconds, 2), sort=seconds),
        ])  # fmt: skip
    return Section("memory", "Memory, size and load time", blocks_of(table(columns, rows)), brief="Memory")


def _alike(engines: Sequence[EngineResult]) -> list[list[EngineResult]]:
    """Engines that never ran, together by precision and size as shown; every other engine alone."""
    groups: dict[object, list[EngineResult]] = {}
    for e in engines:
        size = (precision_of(e.id), round((e.bytes or 0) / 2**20, 2))
        groups.setdefault(size if never_run(e) else e.id, []).append(e)
    return list(groups.values())


def _bar(value: float | None, most: float, digits: int = 2) -> Cell:
    return number(value, digits, share=value / most if value and most else None)
