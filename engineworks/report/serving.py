"""Served packages: readiness, answers, load and what reloads leave behind, one row for each engine."""

from __future__ import annotations

from collections.abc import Iterator

from engineworks.builds.results import BuildResult, EngineResult
from engineworks.measure.serving_report import Load, ServingReport
from engineworks.report.blocks import Block, Cell, Column, Plot, Section, blocks_of, number, table
from engineworks.report.plots import rates_plot


def serving_section(result: BuildResult, *, plots: bool) -> Section | None:
    """Return the section, None where nothing was served. plots: with the plots, which only HTML shows."""
    served = [(engine, engine.serving) for engine in result.engines if engine.serving]
    if not served:
        return None
    return Section(
        "serving", "On a Triton server", blocks_of(_blocks(served), *(_batching(*one, plots=plots) for one in served))
    )


def _blocks(served: list[tuple[EngineResult, ServingReport]]) -> Iterator[Block | None]:
    names = ("engine", "Triton's backend", "ready s", "answers", "equal", "queries/s", "p50 ms", "p99 ms", "errors")
    columns = [Column(name, number=name not in names[:2]) for name in names]
    below = "equal: answers with the engine's own bits; the rate that was answered, or the largest that was found."
    yield table(columns, [_row(engine.id, report) for engine, report in served], below=below)
    batches = [(e.id, report.load.batches) for e, report in served if isinstance(report.load, Load)]
    rows = [[Cell(name, code=True), number(int(size), 0), number(n, 0)] for name, b in batches for size, n in b.items()]
    yield table(
        [Column("engine"), Column("batch", number=True), Column("executions", number=True)],
        rows,
        title="how requests were batched",
    )
    yield _watched(served)


WATCHED = {
    "requests": 0, "failures": 0, "executions": 0, "requests_per_s": 1, "queue_ms": 2, "compute_ms": 2, "p99_ms": 2,
    "gpu_busy": 2, "gpu_mib": 0, "memory_mib": 0,
}  # fmt: skip
"""Figures of Triton's metrics (`serving.metrics.Watched`) and their decimals."""


def _watched(served: list[tuple[EngineResult, ServingReport]]) -> Block | None:
    rows = [
        [Cell(engine.id, code=True), *(number(getattr(found, name), decimals) for name, decimals in WATCHED.items())]
        for engine, report in served
        if (found := report.load and report.load.watched)
    ]
    columns = [Column("engine"), *(Column(name.replace("_", " "), number=True) for name in WATCHED)]
    return table(columns, rows, title="Triton's metrics under the load", below="p99: Triton's own, of the last minute.")


def _batching(engine: EngineResult, report: ServingReport, *, plots: bool) -> Iterator[Block | None]:
    """Show what a sweep of the dynamic batcher found."""
    found = report.batching
    if found is None:
        return
    rates = [point.rate for point in found.points]
    chosen = found.points.index(found.recommended)
    from engineworks.serving.batching import Batching  # with NumPy, which no other page needs

    labels = [str(Batching(point.delay_us, point.preferred, point.instances)) for point in found.points]
    gain = f"; {found.gain:.2f} times the rate without batching" if found.gain else ""
    if plots:
        caption = f"{engine.id}: largest rate by setting; filled: recommended{gain}"
        yield Plot(rates_plot(labels, rates, chosen, f"Dynamic batching of {engine.id}"), caption)
    rows = [[Cell(label), number(rate, 0)] for label, rate in zip(labels, rates, strict=True)]
    columns = [Column("setting"), Column("requests/s", number=True)]
    yield table(
        columns, rows, title=f"dynamic batching of {engine.id}", below=f"marked: recommended{gain}.", marked=chosen
    )


def _row(name: str, report: ServingReport) -> list[Cell]:
    answers, load = report.answers.values(), report.load
    return [
        Cell(name, code=True), Cell(report.backend or ""), number(report.ready_s, 2),
        number(sum(a.requests for a in answers), 0), number(sum(a.equal for a in answers), 0),
        number(load.rate if load else None, 0), number(getattr(load, "latency_ms_p50", None), 2),
        number(getattr(load, "latency_ms_p99", None), 2), number(getattr(load, "errors", None), 0),
    ]  # fmt: skip
