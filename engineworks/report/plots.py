"""The report's plots: latency, batch sweeps, precision against speed and size, trends. Pure; inline SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from engineworks.host.lazy import np
from engineworks.report.blocks import significant
from engineworks.report.chart import (
    DASHES,
    DOTS,
    FONT,
    LABEL_ROW,
    LEGEND_ROW,
    LONG_DASHES,
    MUTED,
    PAGE,
    SMALL,
    TEXT,
    WIDTH,
    Chart,
    Scale,
    legend_height,
    padded,
    series,
    text_width,
)

RIGHT = WIDTH - 12.0
TITLE_ROW = 20.0
ROW, BAR, PANEL = 33.0, 17.0, 104.0
"""Heights of an engine's distribution, a setting's bar, a trend."""

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
    arrays = [np.asarray(r.samples) for r in rows]
    low = min(float(array.min()) for array in arrays)
    high = max(float(np.quantile(array, SHOWN_SHARE)) for array in arrays)
    high = max(high, *(r.p99 for r in rows), low * 1.3)
    edges = np.geomspace(low * 0.97, high * 1.05, BINS + 1)
    chart = Chart(len(rows) * ROW + 2 * LABEL_ROW + 8, title)
    left = 12 + max(text_width(r.name) for r in rows)
    x = Scale(float(edges[0]), float(edges[-1]), left, RIGHT, log=True)
    y = Scale(0, len(rows), chart.height - 2 * LABEL_ROW - 2, 6)
    names = {len(rows) - 1 - index + 0.3: row.name for index, row in enumerate(rows)}
    chart.axes(x, y, x.ticks(), names, names=True, left_line=False)
    for index, (row, array) in enumerate(zip(rows, arrays, strict=True)):
        base = len(rows) - 1 - index
        counts, _ = np.histogram(array, bins=edges)
        heights = 0.85 * np.sqrt(counts / max(counts.max(), 1))  # a tail of single runs must be seen
        chart.area(
            _stairs([x(float(e)) for e in edges], [y(base + float(h)) for h in heights], y(base)), series(row.color)
        )
        chart.line([(x(row.p50), y(base)), (x(row.p50), y(base + 0.9))], TEXT)
        chart.line([(x(row.p99), y(base)), (x(row.p99), y(base + 0.5))], TEXT, 1, DOTS)
    if budget_ms is not None and x.low < budget_ms < x.high:
        chart.line([(x(budget_ms), y.start), (x(budget_ms), y.end)], MUTED, 1, LONG_DASHES)
    chart.text((left + RIGHT) / 2, chart.height - 4, "ms (logarithmic)", MUTED, "middle")
    return chart.svg()


def _stairs(edges: Sequence[float], tops: Sequence[float], base: float) -> list[tuple[float, float]]:
    """Return the outline of bars between the edges, from the base to the base."""
    points, before = [(edges[0], base)], base
    for edge, top in zip(edges, tops, strict=False):
        if top != before:
            points += [(edge, before), (edge, top)]
        before = top
    return [*points, (edges[-1], before), (edges[-1], base)]


def sweep_plot(
    curves: Sequence[Curve], title: str, *, budget_ms: float | None = None, by: str = "batch",
    labels: tuple[str, str] = ("samples/s", "median latency, ms"),
) -> str:  # fmt: skip
    """Throughput and latency by batch, or what `by` names, side by side; the recommended batch stands out."""
    names = {curve.name: series(curve.color) for curve in curves}
    plot_height = 150.0
    bottom = TITLE_ROW + plot_height
    chart = Chart(bottom + 2 * LABEL_ROW + legend_height(names) + 6, title)
    batches = sorted({b for c in curves for b in c.batches})
    for number, (field, label) in enumerate(zip(("samples_per_s", "p50_ms"), labels, strict=True)):
        most = max(v for c in curves for v in getattr(c, field))
        budget = budget_ms if number else None
        y = Scale(0, max(most, budget or 0) * 1.05 or 1, bottom, TITLE_ROW)
        start = number * WIDTH / 2 + 12 + max(map(text_width, y.ticks().values()))
        x = Scale(batches[0] / 1.1, batches[-1] * 1.1, start, (number + 1) * WIDTH / 2 - 12, log=True)
        chart.axes(x, y, {b: str(b) for b in batches}, y.ticks(), label)
        for curve in curves:
            points = [(x(b), y(v)) for b, v in zip(curve.batches, getattr(curve, field), strict=True)]
            chart.line(points, series(curve.color))
            for batch, (at, value) in zip(curve.batches, points, strict=True):
                chart.dot(at, value, 1.75, series(curve.color))
                if batch == curve.chosen:
                    chart.dot(at, value, 4.5, "none", series(curve.color))
        if budget is not None:
            chart.line([(x.start, y(budget)), (x.end, y(budget))], TEXT, 1, DASHES)
            chart.text(x.start + 4, y(budget) - 3, f"budget {budget:g} ms", MUTED, size=SMALL)
        chart.text((x.start + x.end) / 2, bottom + 2 * LABEL_ROW - 3, by, MUTED, "middle")
    if len(names) > 1:
        chart.legend(names, bottom + 2 * LABEL_ROW + LEGEND_ROW)
    return chart.svg()


def rates_plot(labels: Sequence[str], rates: Sequence[float], chosen: int, title: str) -> str:
    """Bars of requests a second by setting, the chosen one filled."""
    bottom = TITLE_ROW + BAR * len(rates)
    chart = Chart(bottom + LABEL_ROW + 4, title)
    x = Scale(0, max(rates) * 1.05 or 1, 12 + max(map(text_width, labels)), RIGHT)
    y = Scale(len(rates), 0, bottom, TITLE_ROW)
    chart.axes(x, y, x.ticks(), {i + 0.5: label for i, label in enumerate(labels)}, "requests/s", names=True)
    for index, rate in enumerate(rates):
        fill = series(0) if index == chosen else PAGE
        chart.bar(x.start, y(index + 0.15), x(rate) - x.start, BAR * 0.7, fill, series(0))
    return chart.svg()


def pareto_plot(choices: Sequence[Choice], title: str, *, xlabel: str, ylabel: str) -> str:
    """Latency to the right, quality upwards, area by size; hollow: did not pass. '' for fewer than two."""
    choices = [c for c in choices if math.isfinite(c.latency_ms) and math.isfinite(c.quality)]
    if len(choices) < 2:
        return ""
    chart = Chart(237, title)
    y = Scale(*padded((c.quality for c in choices), 0.19), chart.height - 2 * LABEL_ROW - 4, TITLE_ROW)
    right = RIGHT - 20 - max(text_width(_legend(c)) for c in choices)
    left = 12 + max(map(text_width, y.ticks().values()))
    x = Scale(*padded((c.latency_ms for c in choices), 0.19), left, right)
    chart.axes(x, y, x.ticks(), y.ticks(), ylabel)
    chart.text((left + right) / 2, chart.height - 4, xlabel, MUTED, "middle")
    chart.line([(x(a), y(b)) for a, b in sorted((c.latency_ms, c.quality) for c in choices if c.front)], MUTED, 1)
    largest = max(c.bytes for c in choices)
    for index, choice in enumerate(choices):
        color = series(choice.color)
        look = (color if choice.verdict == "pass" else PAGE, color, 3 if choice.chosen else 1.4)
        radius = math.sqrt(50 + 550 * choice.bytes / largest) / 2
        chart.dot(x(choice.latency_ms), y(choice.quality), radius, *look)
        chart.dot(right + 18, TITLE_ROW + index * LABEL_ROW, radius * 0.45, *look)
        chart.text(right + 28, TITLE_ROW + index * LABEL_ROW + FONT / 3, _legend(choice))
    return chart.svg()


def _legend(choice: Choice) -> str:
    suffix = ", chosen" if choice.chosen else "" if choice.verdict == "pass" else f", {choice.verdict}"
    return f"{choice.name}: {significant(choice.latency_ms)} ms, {choice.bytes / 2**20:.2f} MiB{suffix}"


def trend_plot(panels: Sequence[Panel], dates: Sequence[str], marks: Sequence[Mark], title: str) -> str:
    """Every quantity over the builds, oldest left; numbered lines mark version changes."""
    names = {track.name: series(track.color) for track in panels[0].tracks}
    top = LABEL_ROW if marks else 0.0
    bottom = top + PANEL * len(panels)
    chart = Chart(bottom + LABEL_ROW + legend_height(names) + 6, title)
    count = len(dates)
    scales = [_trend_scale(panel, top + PANEL * index) for index, panel in enumerate(panels)]
    left = 12 + max(text_width(words) for y in scales for words in y.ticks().values())
    x = Scale(-0.6, count - 0.4, left, RIGHT)
    shown = {round(i * (count - 1) / max(1, min(5, count - 1))) for i in range(min(6, count))}
    for panel, y in zip(panels, scales, strict=True):
        last = y is scales[-1]
        ticks = {float(i): dates[i] if last else "" for i in sorted(shown)}
        chart.axes(x, y, ticks, y.ticks(), f"{panel.title}, {panel.unit}" if panel.unit else panel.title)
        for mark in marks:
            chart.line([(x(mark.index - 0.5), y.start), (x(mark.index - 0.5), y.end)], MUTED, 0.9, DASHES)
        for track in panel.tracks:
            points = [(x(i), y(v)) for i, v in enumerate(track.values) if v is not None and math.isfinite(v)]
            chart.line(points, series(track.color))
            for point in points:
                chart.dot(*point, 1.5, series(track.color))
    for number, mark in enumerate(marks, 1):
        chart.text(x(mark.index - 0.5), SMALL + 2, str(number), anchor="middle", size=SMALL, bold=True)
    if len(names) > 1:
        chart.legend(names, bottom + LABEL_ROW + LEGEND_ROW)
    return chart.svg()


def _trend_scale(panel: Panel, top: float) -> Scale:
    values = [v for t in panel.tracks for v in t.values if v is not None and math.isfinite(v)] or [0.0]
    low, high = padded(values, 0.15)
    if max(values) - min(values) < 1e-3 * abs(max(values)):  # a flat line is flat, not its own noise
        middle, half = (max(values) + min(values)) / 2, abs(max(values)) * 0.02 or 1.0
        low, high = middle - half, middle + half
    return Scale(low, high, top + PANEL - 8, top + TITLE_ROW)
