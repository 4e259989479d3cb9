"""The report's plots, by Matplotlib: latency, batch sweeps, precision against speed and size, trends."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from engineworks.report.blocks import significant
from engineworks.report.theme import MUTED, PAGE, TEXT, drawing, inline, series

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BINS = 80
SHOWN_SHARE = 0.995
"""Of the slowest engine's samples, how many the axis shows: one run in a thousand may take a hundred times as long."""


@dataclass(frozen=True)
class Distribution:
    """One engine's samples at one shape, in ms. color: index of its colour."""

    name: str
    color: int
    samples: Sequence[float]
    p50: float
    p99: float


@dataclass(frozen=True)
class Curve:
    """One engine's batch sweep, or a decoder's by streams. chosen: the recommended batch."""

    name: str
    color: int
    batches: Sequence[int]
    samples_per_s: Sequence[float]
    p50_ms: Sequence[float]
    chosen: int | None = None


@dataclass(frozen=True)
class Choice:
    """One precision. quality: metric relative to fp32's, or cosine. bytes: of the engine. verdict: its own.

    front: whether no other that passed is at least as good in all three, and better in one."""

    name: str
    color: int
    latency_ms: float
    quality: float
    bytes: float
    verdict: str
    chosen: bool = False
    front: bool = False


@dataclass(frozen=True)
class Track:
    """One engine over its builds: a value or None for each."""

    name: str
    color: int
    values: Sequence[float | None]


@dataclass(frozen=True)
class Panel:
    title: str
    unit: str
    tracks: Sequence[Track]


@dataclass(frozen=True)
class Mark:
    """Something changed before this build: its index, and what."""

    index: int
    label: str


def latency_plot(rows: Sequence[Distribution], title: str, *, budget_ms: float | None = None) -> str:
    """One row per engine on one logarithmic axis: the shape of its samples, its median and its p99."""
    import numpy as np

    low = min(min(r.samples) for r in rows)
    high = max(float(np.quantile(np.asarray(r.samples), SHOWN_SHARE)) for r in rows)
    high = max(high, *(r.p99 for r in rows), low * 1.3)
    edges = np.geomspace(low * 0.97, high * 1.05, BINS + 1)
    with drawing(f"latency {title}", 8.6, 0.7 + 0.46 * len(rows)) as figure:
        axes = figure.add_subplot()
        for place, row in enumerate(reversed(rows)):
            counts, _ = np.histogram(np.asarray(row.samples), bins=edges)
            heights = 0.85 * np.sqrt(counts / counts.max())  # a tail of single runs must be seen
            axes.stairs(heights + place, edges, baseline=place, fill=True, color=series(row.color), alpha=0.55)
            axes.plot([row.p50] * 2, [place, place + 0.9], color=TEXT, linewidth=1.6)
            axes.plot([row.p99] * 2, [place, place + 0.5], color=TEXT, linewidth=1, linestyle=(0, (2, 1.5)))
        if budget_ms is not None and low * 0.5 < budget_ms < high * 2:
            axes.axvline(budget_ms, color=MUTED, linewidth=1, linestyle=(0, (7, 3)))
        axes.set_xscale("log")
        axes.set(xlim=(edges[0], edges[-1]), ylim=(-0.05, len(rows) + 0.02), xlabel="ms (logarithmic)")
        axes.set_yticks([i + 0.3 for i in range(len(rows))], [r.name for r in reversed(rows)])
        axes.tick_params(axis="y", length=0, labelcolor=TEXT)
        axes.grid(visible=False, axis="y")
        axes.spines["left"].set_visible(False)
        _plain_log_ticks(axes, edges[0], edges[-1])
        return inline(figure, title)


def _plain_log_ticks(axes: Axes, low: float, high: float) -> None:
    """1, 2, 5 and more steps instead of powers of ten."""
    from matplotlib.ticker import FixedLocator, NullFormatter, NullLocator

    steps: tuple[float, ...] = (1, 2, 5) if high / low < 300 else (1,)
    if high / low < 5:
        steps = (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8, 9)
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [s * 10.0**d for d in decades for s in steps if low <= s * 10.0**d <= high]
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xticks(ticks, [f"{t:g}" for t in ticks])


def sweep_plot(
    curves: Sequence[Curve], title: str, *, budget_ms: float | None = None, by: str = "batch",
    labels: tuple[str, str] = ("samples/s", "median latency, ms"),
) -> str:  # fmt: skip
    """Throughput and latency by batch, or what `by` names, side by side; the recommended batch stands out."""
    with drawing(f"sweep {title}", 8.6, 3.1) as figure:
        panels = figure.subplots(1, 2)
        for axes, field, label in zip(
            panels, ("samples_per_s", "p50_ms"), labels, strict=True
        ):  # fmt: skip
            for curve in curves:
                values = getattr(curve, field)
                axes.plot(
                    curve.batches, values, color=series(curve.color), marker="o", markersize=3.5, label=curve.name
                )
                if curve.chosen is not None and curve.chosen in curve.batches:
                    at = list(curve.batches).index(curve.chosen)
                    axes.plot([curve.chosen], [values[at]], color=series(curve.color), marker="o", markersize=9,
                              fillstyle="none")  # fmt: skip
            batches = sorted({b for c in curves for b in c.batches})
            axes.set_xscale("log", base=2)
            axes.set_xticks(batches, [str(b) for b in batches])
            axes.minorticks_off()
            axes.set(xlabel=by, title=label)
            axes.set_ylim(bottom=0)
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:,g}")
        if budget_ms is not None:
            panels[1].axhline(budget_ms, color=TEXT, linewidth=1, linestyle=(0, (5, 3)))
            panels[1].annotate(f"budget {budget_ms:g} ms", (0.02, budget_ms), xycoords=("axes fraction", "data"),
                               textcoords="offset points", xytext=(0, 3), fontsize=8.5, color=MUTED)  # fmt: skip
        if len(curves) > 1:
            figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=min(6, len(curves)))
        return inline(figure, title)


def rates_plot(labels: Sequence[str], rates: Sequence[float], chosen: int, title: str) -> str:
    """Bars of requests a second by setting, the chosen one filled."""
    with drawing(f"rates {title}", 8.6, 0.8 + 0.24 * len(rates)) as figure:
        axes = figure.add_subplot()
        colors = [series(0) if index == chosen else PAGE for index in range(len(rates))]
        axes.barh(range(len(rates)), rates, color=colors, edgecolor=series(0), height=0.7)
        axes.set_yticks(range(len(labels)), labels)
        axes.invert_yaxis()
        axes.set(title="requests/s")
        return inline(figure, title)


def pareto_plot(choices: Sequence[Choice], title: str, *, xlabel: str, ylabel: str) -> str:
    """Latency to the right, quality upwards, area by size; hollow: did not pass. '' for fewer than two."""
    if len(choices) < 2:
        return ""
    with drawing(f"pareto {title}", 8.6, 3.3) as figure:
        axes = figure.add_subplot()
        largest = max(c.bytes for c in choices)
        front = sorted((c.latency_ms, c.quality) for c in choices if c.front)
        axes.plot([x for x, _ in front], [y for _, y in front], color=MUTED, linewidth=1, zorder=1)
        for choice in choices:
            color = series(choice.color)
            axes.scatter(
                [choice.latency_ms], [choice.quality], s=50 + 550 * choice.bytes / largest,
                edgecolors=color, facecolors=color if choice.verdict == "pass" else PAGE, alpha=0.8, zorder=2,
                linewidths=3 if choice.chosen else 1.4,
                label=_legend(choice),
            )  # fmt: skip
        axes.set(xlabel=xlabel, title=ylabel)
        axes.margins(0.14)
        axes.ticklabel_format(useOffset=False)
        figure.legend(loc="outside right upper", markerscale=0.45, handletextpad=0.3)
        return inline(figure, title)


def _legend(choice: Choice) -> str:
    suffix = ", chosen" if choice.chosen else "" if choice.verdict == "pass" else f", {choice.verdict}"
    return f"{choice.name}: {significant(choice.latency_ms)} ms, {choice.bytes / 2**20:.2f} MiB{suffix}"


def trend_plot(panels: Sequence[Panel], dates: Sequence[str], marks: Sequence[Mark], title: str) -> str:
    """Every quantity over the builds, oldest left; numbered lines mark version changes."""
    count = len(dates)
    with drawing(f"trend {title}", 8.6, 0.5 + 1.45 * len(panels)) as figure:
        rows: Any = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
        for axes, panel in zip(rows, panels, strict=True):
            _track_panel(axes, panel)
            for mark in marks:
                axes.axvline(mark.index - 0.5, color=MUTED, linewidth=0.9, linestyle=(0, (3, 2)), zorder=0)
        for number, mark in enumerate(marks, 1):
            rows[0].annotate(str(number), (mark.index - 0.5, 1), xycoords=("data", "axes fraction"), ha="center",
                             va="bottom", fontsize=8.5, fontweight="bold", color=TEXT)  # fmt: skip
        ticks = sorted({round(i * (count - 1) / max(1, min(5, count - 1))) for i in range(min(6, count))})
        rows[-1].set_xticks(ticks, [dates[i] for i in ticks])
        rows[-1].set_xlim(-0.6, count - 0.4)
        handles, labels = rows[0].get_legend_handles_labels()
        if len(handles) > 1:
            figure.legend(handles, labels, loc="outside lower center", ncols=min(6, len(handles)))
        return inline(figure, title)


def _track_panel(axes: Axes, panel: Panel) -> None:
    for track in panel.tracks:
        known = [(i, v) for i, v in enumerate(track.values) if v is not None]
        axes.plot([i for i, _ in known], [v for _, v in known], color=series(track.color), label=track.name, marker="o",
                  markersize=3)  # fmt: skip
    values = [v for t in panel.tracks for v in t.values if v is not None]
    if values and max(values) - min(values) < 1e-3 * abs(max(values)):  # a flat line is flat, not its own noise
        middle, half = (max(values) + min(values)) / 2, abs(max(values)) * 0.02 or 1.0
        axes.set_ylim(middle - half, middle + half)
    axes.set_title(f"{panel.title}, {panel.unit}" if panel.unit else panel.title, fontsize=9.5)
    axes.ticklabel_format(useOffset=False, axis="y")
    axes.margins(y=0.15)
