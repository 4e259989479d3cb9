"""The task metric per slice of the evaluation data, with intervals. Pure.

A slice is the samples with one name: a language, a camera, a class. Engine and reference are scored on the same rows,
so both are drawn together (paired bootstrap, Efron & Tibshirani 1993, An Introduction to the Bootstrap, 8.4; the
interval is their standard one, 13.3), widened as `_bound` says: few rows that all agree must not look certain.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

from engineworks.errors import ModelError
from engineworks.host.lazy import np
from engineworks.measure.statistics import finite
from engineworks.measure.task_metrics import ratio_to_reference
from engineworks.typed_json import Count, Document

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Rows = NDArray[np.intp]
else:
    Rows = Any

RESAMPLES = 100
"""Draws of a slice's rows: enough for a standard error (Efron & Tibshirani 1993, 6.4)."""

ERROR_RATE = 0.05
"""How often a bound may be wrong. An engine fails by its worst slice, so upper bounds share it (Bonferroni)."""

LOST_BELOW = 0.5
"""An engine that surely keeps less than this part of fp32's quality on a slice has lost it."""

Score = Callable[[Rows], tuple[float, float]]
"""Rows → the metric of engine and reference on them."""


@dataclass(frozen=True)
class Slice(Document):
    """The metric on one slice.

    ratio: quality relative to fp32, 1 is as good, less is worse; None if it is no number. low, high: bounds of the
    ratio, each right in 95% of cases (`high` for all slices together). engine_low, engine_high: bounds of the engine's
    metric. why: why there is no ratio, '' if there is one.
    """

    name: str
    samples: Count
    engine: float | None
    reference: float | None
    ratio: float | None
    low: float
    high: float
    engine_low: float | None = None
    engine_high: float | None = None
    why: str = ""

    @property
    def lost(self) -> bool:
        """Whether the engine surely keeps less than half of what fp32 can do here."""
        return not self.why and self.high < LOST_BELOW


def slice_values(names: NDArray[Any], score: Score, *, lower_is_better: bool, draws: int = RESAMPLES) -> list[Slice]:
    """The metric on the rows of each name, in the names' order. names: str[rows].

    A metric that cannot be computed on a slice (`ModelError`) gives a slice with the reason.
    """
    parts = {str(name): np.flatnonzero(names == name) for name in np.unique(names)}
    upper = ERROR_RATE / len(parts)
    return [_values(name, rows, score, lower_is_better, upper, draws) for name, rows in parts.items()]


def sets_of_rows(names: NDArray[Any], draws: int) -> list[Rows]:
    """Every set of rows that `slice_figures` scores, for a metric that scores them all at once."""
    asked: list[Rows] = []

    def note(rows: Rows) -> tuple[float, float]:
        asked.append(rows)
        return 1.0, 1.0

    slice_values(names, note, lower_is_better=False, draws=draws)
    return asked


def samples_needed(limit: float, ratio: float) -> int | None:
    """Rows that a slice of this ratio needs before its lower bound can reach the limit; None if no number does."""
    return math.ceil(math.log(ERROR_RATE) / math.log(limit / ratio)) if ratio > limit > 0 else None


def _values(name: str, rows: Rows, score: Score, lower: bool, upper: float, count: int) -> Slice:
    try:
        engine, reference = score(rows)
    except ModelError as error:
        return Slice(name, len(rows), None, None, None, 0, 1, why=error.message)
    ratio = ratio_to_reference(engine, reference, lower_is_better=lower)
    if not math.isfinite(reference) or (reference <= 0 and not math.isfinite(ratio) and math.isfinite(engine)):
        why = "fp32 gives no number" if not math.isfinite(reference) else "fp32 is not above zero"
        return Slice(name, len(rows), finite(engine), finite(reference), None, 0, 1, why=why)
    if not math.isfinite(engine) and not (lower and engine > 0):
        return Slice(name, len(rows), None, reference, None, 0, 0)
    ratio = 0.0 if not math.isfinite(ratio) else ratio
    draws = np.array(list(_draws(rows, score, lower, count)))
    ratio_error, engine_error = draws.std(axis=0, ddof=1) if len(draws) > 1 else (0.0, 0.0)
    low = _bound(ratio, ratio_error, len(rows), ERROR_RATE, 0.0)
    high = _bound(ratio, ratio_error, len(rows), upper, max(1.0, ratio))
    worst, best = _metric_bounds(engine, engine_error, len(rows))
    return Slice(name, len(rows), finite(engine), reference, ratio, low, high, finite(worst), finite(best))


def _metric_bounds(engine: float, error: float, rows: int) -> tuple[float, float]:
    """The bounds of the engine's own metric. Rows that all agree are no certainty: see `_bound`."""
    if error == 0 and engine >= 0:
        return _bound(engine, 0, rows, ERROR_RATE, 0.0), _bound(engine, 0, rows, ERROR_RATE, max(1.0, engine))
    z = NormalDist().inv_cdf(1 - ERROR_RATE)
    return engine - z * error, engine + z * error


def _bound(ratio: float, error: float, rows: int, alpha: float, unobserved: float) -> float:
    """A bound of the ratio that is wrong at most with probability α. unseen: the ratio on rows that were not seen.

    z²/2 such rows are added to the n that were measured (Agresti & Coull 1998, The American Statistician 52), because
    the standard interval is too narrow near 0 and 1. Rows that all agree have no error to go by: n of them exclude
    kinds of rows that are more than 1 - α^(1/n) of the slice (the rule of three).
    """
    if error == 0:
        return float(ratio + (1 - alpha ** (1 / rows)) * (unobserved - ratio))
    z = NormalDist().inv_cdf(1 - alpha)
    added = z * z / 2
    share = added / (rows + added)
    center = ratio + share * (unobserved - ratio)
    spread = z * math.sqrt(error**2 * (1 - share) + share * (unobserved - center) ** 2 / (rows + added))
    return float(center + spread if unobserved else max(0.0, center - spread))


def _draws(rows: Rows, score: Score, lower: bool, count: int) -> Iterator[tuple[float, float]]:
    """Ratio and engine's metric of rows drawn with replacement, without draws on which the metric is no number."""
    generator = np.random.default_rng(0)
    for _ in range(count):
        try:
            engine, reference = score(rows[generator.integers(0, len(rows), len(rows))])
        except ModelError:
            continue
        ratio = ratio_to_reference(engine, reference, lower_is_better=lower)
        if math.isfinite(ratio) and math.isfinite(engine):
            yield ratio, engine
