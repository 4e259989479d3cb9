"""An engine's latency and batch sweep as text, for the terminal, the HTML page and the Markdown twin."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from engineworks.builds.results import EngineResult


@dataclass(frozen=True)
class Table:
    """Cells as text. below: one sentence, or ''."""

    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    below: str = ""


LATENCY_HEADINGS = (
    "shape", "dims", "p50 ms", "p50 at 95 %", "p90 ms", "p99 ms", "device p50 ms", "device p99 ms",
    "with copies p50 ms", "with copies p99 ms", "first run ms", "samples/s", "MiB", "runs",
)  # fmt: skip
"""p50, p90, p99: the host's clock without copies, and the median's 95 % interval. device: the same runs by the device's
clock. MiB: what loading and running the engine adds."""

_LATENCY_KEYS = (
    ("latency_ms_p50", 4), ("median_interval", 4), ("latency_ms_p90", 4), ("latency_ms_p99", 4),
    ("device_ms_p50", 4), ("device_ms_p99", 4), ("copies_ms_p50", 4), ("copies_ms_p99", 4), ("first_run_ms", 2),
    ("throughput_per_s", 0), ("memory_mib", 2), ("runs", 0),
)  # fmt: skip

SWEEP_HEADINGS = ("batch", "samples/s", "mean ms", "p50 ms", "p99 ms", "MiB", "error")


def latency_table(engine: EngineResult) -> Table | None:
    """One row per named shape; columns that no shape has a figure for are left out."""
    shapes: Mapping[str, Mapping[str, Any]] = (engine.latency or {}).get("shapes", {})
    if not shapes:
        return None
    rows = [
        (name, dims_text(s["dims"]), *(_cell(s.get(key), digits) for key, digits in _LATENCY_KEYS))
        for name, s in shapes.items()
    ]
    return _without_empty_columns(LATENCY_HEADINGS, rows)


def _without_empty_columns(headings: Sequence[str], rows: Sequence[Sequence[str]], below: str = "") -> Table:
    used = [i for i in range(len(headings)) if any(row[i] for row in rows)]
    return Table(tuple(headings[i] for i in used), tuple(tuple(row[i] for i in used) for row in rows), below)


def has_device_figures(engine: EngineResult) -> bool:
    """Whether more was measured than the host's time."""
    shapes = (engine.latency or {}).get("shapes", {})
    return any(s.get("device_ms_p50") is not None or s.get("copies_ms_p50") is not None for s in shapes.values())


def streams_table(engine: EngineResult) -> Table | None:
    shapes: Mapping[str, Mapping[str, Any]] = (engine.latency or {}).get("shapes", {})
    rows = [
        (name, str(one["streams"]), figure(one["runs_per_s"], 0), figure(one["samples_per_s"], 0))
        for name, s in shapes.items()
        for one in s.get("streams", ())
    ]
    return Table(("shape", "streams", "runs/s", "samples/s"), tuple(rows)) if rows else None


def sweep_table(engine: EngineResult) -> Table | None:
    """One row per batch, and the recommendation below; the recommended batch is marked."""
    if engine.recommendation is None or engine.latency is None:
        return None
    chosen = engine.recommendation.batch
    rows = tuple(_sweep_row(point, recommended=point["batch"] == chosen) for point in engine.latency["sweep"])
    return _without_empty_columns(SWEEP_HEADINGS, rows, f"Recommended: {engine.recommendation.sentence}.")


def _sweep_row(point: Mapping[str, Any], *, recommended: bool) -> tuple[str, ...]:
    keys = (
        ("throughput_per_s", 0), ("latency_ms_mean", 4), ("latency_ms_p50", 4), ("latency_ms_p99", 4), ("memory_mib", 2)
    )  # fmt: skip
    cells = (figure(point.get(key), digits) for key, digits in keys)
    return (f"{point['batch']}{' *' if recommended else ''}", *cells, point.get("error", ""))


def tables(engine: EngineResult) -> list[Table]:
    """What a report shows of an engine's speed."""
    return [t for t in (latency_table(engine), streams_table(engine), sweep_table(engine)) if t is not None]


def remarks(engine: EngineResult) -> Iterator[str]:
    """What to know before the figures are trusted: the device's complaints first, then the notes."""
    report = engine.latency or {}
    yield from report.get("device", {}).get("complaints", ())
    yield from report.get("notes", ())
    for name, s in report.get("shapes", {}).items():
        yield from (f"{name}: {note}" for note in s["notes"])
    for point in report.get("sweep", ()):
        if "shape" not in point:
            yield from (f"batch {point['batch']}: {note}" for note in point.get("notes", ()))


def warnings(engine: EngineResult) -> Sequence[str]:
    """Those remarks that a terminal should show: the first thing that was wrong with the device, and how the engine ran
    otherwise than was asked."""
    report = engine.latency or {}
    first, *more = report.get("device", {}).get("complaints") or [""]
    rest = f" ({len(more)} more in the report)" if more else ""
    return [*([first + rest] if first else []), *report.get("notes", ())]


def dims_text(dims: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {length}" for name, length in dims.items())


def _cell(value: float | Sequence[float] | None, digits: int) -> str:
    """A figure, or the two of an interval."""
    return " to ".join(figure(v, digits) for v in value) if isinstance(value, Sequence) else figure(value, digits)


def figure(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:,.{digits}f}"
