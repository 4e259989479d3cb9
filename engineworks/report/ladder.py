"""The ladder of `precisions: auto` as tables, for the terminal, the HTML page and Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from engineworks.measure.ladder import estimate as ladder_estimate
from engineworks.measure.ladder.ladder import Candidate, TargetLadder
from engineworks.report.blocks import Cell, Column, Table, table
from engineworks.report.values import number_text


@dataclass(frozen=True)
class LadderTable:
    """One target's candidates in the ladder's order; the chosen one is marked."""

    ladder: TargetLadder
    table: Table
    notes: tuple[str, ...]


def ladder_tables(ladders: Sequence[TargetLadder]) -> Iterator[LadderTable]:
    """One table per target."""
    for ladder in ladders:
        chosen = next((i for i, candidate in enumerate(ladder.candidates) if candidate.chosen), None)
        shown = table(COLUMNS, map(_cells, ladder.candidates), marked=chosen)
        if shown:
            yield LadderTable(ladder, shown, tuple(_notes(ladder)))


COLUMNS = (
    Column("precision"), Column("verdict"),
    *(Column(name, number=True) for name in ("metric", "cosine", "of fp32", "p50 ms", "estimated", "MiB")),
    Column("Pareto"), Column("ladder"),
)  # fmt: skip
"""of fp32: the quality that the plot shows. estimated: time relative to fp16 where nothing was measured. Pareto: *
where no other candidate that passed is at least as good in quality, latency and size, and better in one."""


def _cells(candidate: Candidate) -> tuple[Cell, ...]:
    numbers = (
        number_text(candidate.metric, 4),
        number_text(candidate.cosine, 5),
        number_text(candidate.quality, 4),
        number_text(candidate.latency_ms, 3),
        number_text(candidate.estimate, 2),
        number_text(candidate.bytes / 2**20 if candidate.bytes else None, 2),
    )
    outcome = "chosen" if candidate.chosen else f"dropped: {candidate.dropped}"
    return (
        Cell(candidate.precision), Cell(candidate.verdict, tone=candidate.verdict), *map(Cell, numbers),
        Cell("*" if candidate.pareto else ""), Cell(outcome),
    )  # fmt: skip


def _notes(ladder: TargetLadder) -> Iterator[str]:
    if ladder.basis == "estimated":
        yield f"The order is {ladder_estimate.LABEL}."
    doubtful = [r for r in ladder.candidates if r.doubt and r.latency_ms]
    if doubtful:
        yield f"Latencies not to be trusted: {', '.join(r.precision for r in doubtful)} ({doubtful[0].doubt})."
    built_in = [r.precision for r in ladder.candidates if r.built_in_limits]
    if built_in:
        yield f"Built-in accuracy limits, for the recipe gives none: {', '.join(built_in)}."
