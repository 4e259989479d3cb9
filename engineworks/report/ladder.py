"""The ladder of `precisions: auto` as tables and, per target, a Pareto plot: accuracy against latency against size."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from engineworks.ladder import Rung, TargetLadder
from engineworks.ladder import estimate as ladder_estimate
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
    plot: str


def ladder_tables(ladders: Sequence[TargetLadder], *, plots: bool = False) -> Iterator[LadderTable]:
    """One table per target. plots: with the SVG of each target that has two rungs or more to show."""
    for ladder in ladders:
        chosen = next((i for i, r in enumerate(ladder.rungs) if r.chosen), None)
        rows = tuple(_cells(r) for r in ladder.rungs)
        used = [i for i in range(len(HEADINGS)) if any(row[i] for row in rows)]
        headings = tuple(HEADINGS[i] for i in used)
        shown = tuple(tuple(row[i] for i in used) for row in rows)
        plot = pareto_plot(ladder) if plots else ""
        yield LadderTable(ladder.target, ladder.sentence, headings, shown, chosen, tuple(_notes(ladder)), plot)


HEADINGS = (
    "precision", "verdict", "metric", "cosine", "of fp32", "p50 ms", "estimated", "MiB", "Pareto", "ladder"
)  # fmt: skip
"""of fp32: the quality that the plot shows. estimated: time relative to fp16 where nothing was measured. Pareto: *
where no other rung that passed is at least as good in quality, latency and size, and better in one."""


def _cells(rung: Rung) -> tuple[str, ...]:
    return (
        rung.precision,
        rung.verdict,
        figure(rung.metric, 4),
        figure(rung.cosine, 5),
        figure(rung.quality, 4),
        figure(rung.latency_ms, 3),
        figure(rung.estimate, 2),
        figure(rung.bytes / 2**20 if rung.bytes else None, 2),
        "*" if rung.pareto else "",
        "chosen" if rung.chosen else f"dropped: {rung.dropped}",
    )


def _notes(ladder: TargetLadder) -> Iterator[str]:
    if ladder.basis == "estimated":
        yield f"The order is {ladder_estimate.SENTENCE}."
    doubtful = [r for r in ladder.rungs if r.doubt and r.latency_ms]
    if doubtful:
        yield f"Latencies not to be trusted: {', '.join(r.precision for r in doubtful)} ({doubtful[0].doubt})."
    built_in = [r.precision for r in ladder.rungs if r.built_in_limits]
    if built_in:
        yield f"Built-in accuracy limits, for the recipe gives none: {', '.join(built_in)}."


def pareto_plot(ladder: TargetLadder) -> str:
    """An inline SVG by Matplotlib: latency to the right, quality upwards, area by engine size; hollow where the gate
    failed. '' where fewer than two rungs were measured."""
    shown = [
        (r, r.latency_ms, r.quality, r.bytes)
        for r in ladder.rungs
        if r.latency_ms is not None and r.quality is not None and r.bytes is not None
    ]
    if len(shown) < 2:
        return ""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(_STYLE | {"svg.hashsalt": ladder.target}):
        drawing = Figure(figsize=(8, 3.6), layout="constrained")
        axes = drawing.add_subplot()
        largest = max(size for _, _, _, size in shown)
        for index, (rung, latency_ms, quality, size) in enumerate(shown):
            color = f"C{index}"
            axes.scatter(
                [latency_ms], [quality], s=40 + 500 * size / largest, edgecolors=color,
                facecolors=color if rung.verdict == "pass" else "none", alpha=0.7, label=_legend(rung),
            )  # fmt: skip
        front = sorted((latency_ms, quality) for rung, latency_ms, quality, _ in shown if rung.pareto)
        axes.plot([x for x, _ in front], [y for _, y in front], color="#888", linewidth=1, zorder=0)
        axes.set(xlabel=f"median latency at {ladder.shape}, ms", ylabel=_quality(ladder))
        axes.margins(0.15)
        axes.ticklabel_format(useOffset=False)
        drawing.legend(loc="outside right upper", markerscale=0.5, frameon=False)
        text = io.StringIO()
        drawing.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    return _inline(text.getvalue(), f"Pareto plot of {ladder.target}: quality against latency against size")


_STYLE: dict[Any, Any] = dict.fromkeys(
    ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), "#888"
) | {"svg.fonttype": "none", "font.size": 10}
"""Legible on a light page and on a dark one."""


def _quality(ladder: TargetLadder) -> str:
    return "task metric / fp32's" if any(r.metric is not None for r in ladder.rungs) else "cosine to fp32"


def _legend(rung: Rung) -> str:
    size = figure((rung.bytes or 0) / 2**20, 2)
    word = ", chosen" if rung.chosen else "" if rung.verdict == "pass" else f", {rung.verdict}"
    return f"{rung.precision}: {figure(rung.latency_ms, 3)} ms, {size} MiB{word}"


def _inline(text: str, title: str) -> str:
    """The <svg> element alone, as HTML takes it: without XML's head, namespaces and metadata."""
    svg = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg).replace("xlink:href", "href")
    return svg.replace("<svg ", f'<svg role="img" aria-label="{title}" ', 1)
