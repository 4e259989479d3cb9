"""An engine's latency, streams and batch sweep as tables, for the terminal, the HTML page and Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from engineworks.builds.results import EngineResult
from engineworks.measure.latency_report import ShapeMeasurement
from engineworks.report.blocks import Table, text_table
from engineworks.tensors import dims_text

LATENCY = (
    ("p50 ms", "latency_ms_p50", 4), ("p50 at 95%", "median_interval", 4), ("p90 ms", "latency_ms_p90", 4),
    ("p99 ms", "latency_ms_p99", 4), ("device p50 ms", "device_ms_p50", 4), ("device p99 ms", "device_ms_p99", 4),
    ("with copies p50 ms", "copies_ms_p50", 4), ("with copies p99 ms", "copies_ms_p99", 4),
    ("first run ms", "first_run_ms", 2), ("samples/s", "throughput_per_s", 0), ("MiB", "memory_mib", 2),
    ("runs", "runs", 0),
)  # fmt: skip
"""Heading, key in latency.json, decimals. p50, p90, p99: the host's clock without copies, and the median's 95%
interval. device: the same runs by the device's clock. MiB: what loading and running the engine adds."""

SWEEP = (
    ("samples/s", "throughput_per_s", 0), ("mean ms", "latency_ms_mean", 4), ("p50 ms", "latency_ms_p50", 4),
    ("p99 ms", "latency_ms_p99", 4), ("MiB", "memory_mib", 2),
)  # fmt: skip


def shapes_of(engine: EngineResult) -> Mapping[str, ShapeMeasurement]:
    """What was measured, by named shape."""
    return engine.latency.shapes if engine.latency else {}


def latency_table(engine: EngineResult) -> Table | None:
    """One row per named shape."""
    headings = ("shape", "dims", *(heading for heading, _, _ in LATENCY))
    rows = [
        (name, dims_text(shape.dims), *(_cell(getattr(shape, key), digits) for _, key, digits in LATENCY))
        for name, shape in shapes_of(engine).items()
    ]
    return text_table(headings, rows, texts=("shape", "dims", "p50 at 95%"))


def has_device_measurements(engine: EngineResult) -> bool:
    """Whether more was measured than the host's time."""
    keys = ("device_ms_p50", "copies_ms_p50")
    return any(getattr(shape, key) is not None for shape in shapes_of(engine).values() for key in keys)


def streams_table(engine: EngineResult) -> Table | None:
    rows = [
        (name, str(stream.streams), number_text(stream.runs_per_s, 0), number_text(stream.samples_per_s, 0))
        for name, shape in shapes_of(engine).items()
        for stream in shape.streams
    ]
    return text_table(("shape", "streams", "runs/s", "samples/s"), rows, texts=("shape",))


def sweep_table(engine: EngineResult) -> Table | None:
    """One row per batch, and the recommendation below; the recommended batch is marked."""
    if engine.recommendation is None or engine.latency is None:
        return None
    chosen = engine.recommendation.batch
    rows = [
        (f"{point.batch}{' *' if point.batch == chosen else ''}",
         *(number_text(getattr(point, key, None), digits) for _, key, digits in SWEEP), getattr(point, "error", ""))
        for point in engine.latency.sweep
    ]  # fmt: skip
    headings = ("batch", *(heading for heading, _, _ in SWEEP), "error")
    return text_table(headings, rows, texts=("error",), below=f"Recommended: {engine.recommendation.message}.")


def remarks(engine: EngineResult) -> Iterator[str]:
    """Reasons not to trust the figures: the device's complaints first, then the notes."""
    yield from complaints(engine)
    yield from engine.latency.notes if engine.latency else ()
    for name, shape in shapes_of(engine).items():
        yield from (f"{name}: {note}" for note in shape.notes)
    for point in engine.latency.points if engine.latency else ():
        if not point.shape:
            yield from (f"batch {point.batch}: {note}" for note in point.notes)


def complaints(engine: EngineResult) -> Sequence[str]:
    """What the device or the host did while the engine was measured."""
    return engine.latency.device.complaints if engine.latency else ()


def _cell(value: float | Sequence[float] | None, digits: int) -> str:
    """A number, or the two ends of an interval."""
    if isinstance(value, Sequence):
        return " to ".join(number_text(v, digits) for v in value)
    return number_text(value, digits)


def number_text(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:,.{digits}f}"
