"""Engines next to their baselines: one table per named shape, for the terminal, the HTML page and Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from engineworks.builds.comparison import Comparison, ComparisonRow
from engineworks.report.blocks import Cell, Column, Table
from engineworks.report.values import number_text
from engineworks.tensors import dims_text

NUMBERS = ("p50 ms", "p99 ms", "samples/s", "MiB", "load ms", "cosine")


def comparison_tables(comparison: Comparison | None) -> Iterator[Table]:
    """The fastest row that is right is marked. Nothing where no comparison was requested."""
    for shape in comparison.shapes if comparison else ():
        assert comparison is not None
        rows = comparison.at(shape)
        right = [i for i, row in enumerate(rows) if row.right and row.latency_ms_p50]
        best = min(right, key=lambda i: rows[i].latency_ms_p50 or 0.0, default=None)
        yield Table(_columns(comparison), tuple(map(_cells, rows)), _title(shape, rows), marked=best)


def _columns(comparison: Comparison) -> tuple[Column, ...]:
    over = f"× over {comparison.over}" if comparison.over else "×"
    numbers = (Column(name, number=True) for name in (*NUMBERS, over))
    return (Column("framework"), Column("precision"), *numbers, Column("note"))


def _title(shape: str, rows: list[ComparisonRow]) -> str:
    lengths = dims_text(next((row.dims for row in rows if row.dims), {}))
    return f"compared at {shape} ({lengths})" if lengths else f"compared at {shape}" if shape else "compared"


def _cells(row: ComparisonRow) -> tuple[Cell, ...]:
    texts = (
        row.framework,
        row.precision,
        number_text(row.latency_ms_p50, 3),
        number_text(row.latency_ms_p99, 3),
        number_text(row.throughput_per_s, 0),
        number_text(row.memory_mib, 1),
        number_text(row.load_ms, 1),
        _cosines(row.cosine or {}),
        number_text(row.speedup, 2),
    )
    return (*map(Cell, texts), Cell(row.note.splitlines()[0] if row.note else "", tone="muted"))


def _cosines(cosine: Mapping[str, float | None]) -> str:
    """The number alone for one output; with several outputs each with its name."""
    if len(cosine) == 1:
        return number_text(next(iter(cosine.values())), 5)
    return ", ".join(f"{name} {number_text(value, 5) or 'none'}" for name, value in cosine.items())
