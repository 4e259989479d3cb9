"""Limits that follow from the metric's sampling error, the precision's error and the last nights. Pure.

A limit should fail on a real loss and not on chance. So it lies as far below what was measured as chance can reach:
the lower 95% bound of the metric (bootstrap), 1.5 times the error of the outputs, the worst of the last nights.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from engineworks.measure.accuracy_report import MetricValues
from engineworks.measure.slices import Slice
from engineworks.typed_json import Record

MARGIN = 1.5
"""Multiple of the relative error that a cosine limit allows: kernels of another version or GPU round otherwise."""

DIGITS = 2
"""Significant digits of the distance from 1: 0.99973, not 0.999731."""

LEAST_DISTANCE = 1e-5
"""A cosine limit nearer to 1 than this would fail on rounding in fp32."""


@dataclass(frozen=True)
class Evidence:
    """What was measured of one engine. slice: the metric on all samples, with bounds; None without a metric. cosine:
    the worst of the outputs. nights: earlier values by name of a limit (cosine, metric_ratio), newest first."""

    engine: str
    cosine: float | None
    overall: Slice | None
    metric: MetricValues | None
    nights: Mapping[str, Sequence[float]]

    @property
    def ruined(self) -> str:
        """Why no limit may follow from this engine: it would pass everything. '' for a sound one."""
        if self.overall is None or not self.overall.lost:
            return ""
        ratio = "no number" if self.overall.ratio is None else f"{self.overall.ratio:.3g} of fp32's"
        return f"its limits stay: its metric is {ratio}; 'engineworks blame {self.engine}' names the nodes"


@dataclass(frozen=True)
class Suggestion(Record):
    """One limit of a precision. before: the recipe's value, None for none. reason: with its numbers."""

    precision: str
    limit: str
    value: float
    before: float | None
    reason: str


def suggest_limits(precision: str, found: Sequence[Evidence], before: Mapping[str, Any]) -> list[Suggestion]:
    """A cosine limit, and a metric limit where the recipe has a metric: of all engines of one precision.

    before: the recipe's limits of this precision. fp32 gets a limit of the metric itself, others of their ratio to it.
    """
    made = [_cosine(found), *([_metric(found)] if precision == "fp32" else [_ratio(found)])]
    lower = any(e.metric.lower_is_better for e in found if e.metric)
    return [
        Suggestion(precision, name, value, before.get(name), reason + _looser(name, value, before.get(name), lower))
        for name, value, reason in filter(None, made)
        if before.get(name) is None or not math.isclose(before[name], value, rel_tol=1e-9)
    ]


def _looser(name: str, value: float, before: float | None, lower_is_better: bool) -> str:
    """Say so, where the present limit is stricter than what was measured allows. All but an error rate's are minima."""
    if before is None:
        return ""
    maximum = name == "metric" and lower_is_better
    return "; looser than now" if (value > before if maximum else value < before) else ""


Made = tuple[str, float, str] | None


def _cosine(found: Sequence[Evidence]) -> Made:
    measured = [e.cosine for e in found if e.cosine is not None]
    if not measured:
        return None
    nights = [n for e in found for n in e.nights.get("cosine", ()) if math.isfinite(n)]
    worst = min((*measured, *nights))
    error = math.sqrt(max(0.0, 2 * (1 - worst)))
    value = _below_one(1 - max(LEAST_DISTANCE, (MARGIN * error) ** 2 / 2))
    reason = f"worst cosine {worst:.6g}{_of(found, nights)}; {MARGIN:g} × its relative error of {error:.2g}"
    return ("cosine", value, reason) if value > 0 else None


def _ratio(found: Sequence[Evidence]) -> Made:
    overalls = [e.overall for e in found if e.overall is not None and e.overall.ratio is not None]
    if not overalls:
        return None
    nights = [n for e in found for n in e.nights.get("metric_ratio", ()) if math.isfinite(n)]
    low = min(overall.low for overall in overalls)
    worst = min(overall.ratio or 0.0 for overall in overalls)
    value = _below_one(min((low, *nights)))
    reason = (
        f"ratio {worst:.4g} on {overalls[0].samples} samples, lower 95% bound {low:.4g} (bootstrap){_of([], nights)}"
    )
    return ("metric_ratio", value, reason) if 0 < value <= 1 else None


def _metric(found: Sequence[Evidence]) -> Made:
    """fp32's own metric: how far other samples of the same kind could move it, of the worst engine."""
    bounds = [
        (e.overall.engine_high if e.metric.lower_is_better else e.overall.engine_low, e.overall, e.metric)
        for e in found if e.overall is not None and e.metric is not None
    ]  # fmt: skip
    known = [(bound, overall, metric) for bound, overall, metric in bounds if bound is not None]
    if not known:
        return None
    lower = known[0][2].lower_is_better
    bound, overall, metric = (max if lower else min)(known, key=lambda one: one[0])
    reason = f"{metric.name} {overall.engine:.4g} on {overall.samples} samples, 95% bound {bound:.4g} (bootstrap)"
    return "metric", _rounded(bound, up=lower), reason


def _of(found: Iterable[Evidence], nights: Sequence[float]) -> str:
    engines = [e.engine for e in found]
    parts = [f"{len(engines)} engine{'s' * (len(engines) > 1)}"] if engines else []
    parts += [f"{len(nights)} earlier run{'s' * (len(nights) > 1)}, worst {min(nights):.6g}"] if nights else []
    return f" ({', '.join(parts)})" if parts else ""


def _below_one(value: float) -> float:
    """Rounded down so that its distance from 1 has two significant digits."""
    distance = 1 - value
    if distance <= 0:
        return 1 - LEAST_DISTANCE
    places = max(0, DIGITS - 1 - math.floor(math.log10(distance)))
    return round(1.0 - math.ceil(round(distance * 10.0**places, 6)) / 10.0**places, places)


def _rounded(value: float, *, up: bool) -> float:
    """Three decimal places, away from what was measured."""
    return (math.ceil(value * 1000) if up else math.floor(value * 1000)) / 1000
