"""Engines beside their peers as text: one table per named shape, for the terminal, the HTML page and Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from engineworks.builds.comparison import Comparison, ComparisonRow


@dataclass(frozen=True)
class ComparisonTable:
    """title: the shape and its lengths. best: index of the fastest row that is right, None where none is."""

    title: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    best: int | None


def comparison_tables(comparison: Comparison | None) -> Iterator[ComparisonTable]:
    """Nothing where no comparison was asked for."""
    for shape in comparison.shapes if comparison else ():
        assert comparison is not None
        rows = comparison.at(shape)
        right = [i for i, row in enumerate(rows) if row.right and row.latency_ms_p50]
        best = min(right, key=lambda i: rows[i].latency_ms_p50 or 0.0, default=None)
        yield ComparisonTable(_title(shape, rows), _headings(comparison), tuple(map(_cells, rows)), best)


def _headings(comparison: Comparison) -> tuple[str, ...]:
    over = f"× over {comparison.over}" if comparison.over else "×"
    return ("framework", "precision", "p50 ms", "p99 ms", "samples/s", "MiB", "load ms", "cosine", over, "note")


def _title(shape: str, rows: list[ComparisonRow]) -> str:
    dims = next((row.dims for row in rows if row.dims), {})
    lengths = ", ".join(f"{name} {length}" for name, length in dims.items())
    return f"compared at {shape} ({lengths})" if lengths else f"compared at {shape}" if shape else "compared"


def _cells(row: ComparisonRow) -> tuple[str, ...]:
    return (
        row.framework,
        row.precision,
        _figure(row.latency_ms_p50, 3),
        _figure(row.latency_ms_p99, 3),
        _figure(row.throughput_per_s, 0),
        _figure(row.memory_mib, 1),
        _figure(row.load_ms, 1),
        _cosines(row.cosine or {}),
        _figure(row.speedup, 2),
        row.note.splitlines()[0] if row.note else "",
    )


def _cosines(cosine: Mapping[str, float | None]) -> str:
    """One figure for one output, else each with its name."""
    if len(cosine) == 1:
        return _figure(next(iter(cosine.values())), 5)
    return ", ".join(f"{name} {_figure(value, 5) or 'none'}" for name, value in cosine.items())


def _figure(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:,.{digits}f}"
