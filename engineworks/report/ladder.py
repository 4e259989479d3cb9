"""The ladder of `precisions: auto` as tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from engineworks.measure.ladder import estimate as ladder_estimate
from engineworks.measure.ladder.ladder import Candidate, TargetLadder
from engineworks.report.figures import figure


@dataclass(frozen=True)
class LadderTable:
    """target and sentence say what was chosen; rows are in the ladder's order. chosen: index of its row, or None."""

    target: str
    sentence: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    chosen: int | None
    notes: tuple[str, ...]


def ladder_tables(ladders: Sequence[TargetLadder]) -> Iterator[LadderTable]:
    """One table per target."""
    for ladder in ladders:
        chosen = next((i for i, r in enumerate(ladder.candidates) if r.chosen), None)
        rows = tuple(_cells(r) for r in ladder.candidates)
        used = [i for i in range(len(HEADINGS)) if any(row[i] for row in rows)]
        headings = tuple(HEADINGS[i] for i in used)
        shown = tuple(tuple(row[i] for i in used) for row in rows)
        yield LadderTable(ladder.target, ladder.sentence, headings, shown, chosen, tuple(_notes(ladder)))


HEADINGS = (
    "precision", "verdict", "metric", "cosine", "of fp32", "p50 ms", "estimated", "MiB", "Pareto", "ladder"
)  # fmt: skip
"""of fp32: the quality that the plot shows. estimated: time relative to fp16 where nothing was measured. Pareto: *
where no other candidate that passed is at least as good in quality, latency and size, and better in one."""


def _cells(candidate: Candidate) -> tuple[str, ...]:
    return (
        candidate.precision,
        candidate.verdict,
        figure(candidate.metric, 4),
        figure(candidate.cosine, 5),
        figure(candidate.quality, 4),
        figure(candidate.latency_ms, 3),
        figure(candidate.estimate, 2),
        figure(candidate.bytes / 2**20 if candidate.bytes else None, 2),
        "*" if candidate.pareto else "",
        "chosen" if candidate.chosen else f"dropped: {candidate.dropped}",
    )


def _notes(ladder: TargetLadder) -> Iterator[str]:
    if ladder.basis == "estimated":
        yield f"The order is {ladder_estimate.SENTENCE}."
    doubtful = [r for r in ladder.candidates if r.doubt and r.latency_ms]
    if doubtful:
        yield f"Latencies not to be trusted: {', '.join(r.precision for r in doubtful)} ({doubtful[0].doubt})."
    built_in = [r.precision for r in ladder.candidates if r.built_in_limits]
    if built_in:
        yield f"Built-in accuracy limits, for the recipe gives none: {', '.join(built_in)}."
