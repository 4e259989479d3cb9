"""Statistics of samples. Pure functions over lists of numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from statistics import NormalDist
from typing import NamedTuple

TAILS = {"p90_ms": 0.9, "p99_ms": 0.99}
"""Quantiles by the budget that limits them; each has a minimum number of runs for an interval."""


class Interval(NamedTuple):
    low: float
    high: float

    @property
    def half_width(self) -> float:
        return (self.high - self.low) / 2


def quantile(ordered: Sequence[float], q: float) -> float:
    """Quantile of sorted samples by linear interpolation (Hyndman & Fan 1996, type 7: NumPy's default)."""
    at = (len(ordered) - 1) * q
    low = math.floor(at)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (at - low)


def quantile_interval(ordered: Sequence[float], q: float, confidence: float = 0.95) -> Interval | None:
    """Distribution-free interval of a quantile from order statistics (Hahn & Meeker 1991, Statistical Intervals, 5.2).

    Uses the normal approximation of the binomial; None if there are too few samples for this confidence.
    """
    n = len(ordered)
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    spread = z * math.sqrt(n * q * (1 - q))
    low, high = math.floor(n * q - spread), math.ceil(n * q + spread)
    if low < 0 or high > n - 1:
        return None
    return Interval(ordered[low], ordered[high])


@cache
def enough_for(q: float, confidence: float = 0.95) -> int:
    """Fewest samples for which `quantile_interval` of the quantile exists: 0.5 → 8, 0.9 → 53, 0.99 → 563."""
    n = 2
    while quantile_interval(range(n), q, confidence) is None:
        n += 1
    return n


def finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def student_quantile(p: float, freedom: int) -> float:
    """Quantile of Student's t distribution with this many degrees of freedom."""
    from scipy.special import stdtrit  # what scipy.stats.t calls, whose import takes .8 s; this takes .2 s

    return float(stdtrit(freedom, p))


def reaches(value: float, limit: float) -> bool:
    """Whether value ≥ limit up to rounding: .98 - .97 is .010000000000000009 in floating point."""
    return value >= limit or math.isclose(value, limit, rel_tol=1e-9, abs_tol=1e-15)


def number_text(value: float | None) -> str:
    """Up to six significant digits: 0.99 and 0.9999 must not look alike."""
    return "not a number" if value is None or not math.isfinite(value) else f"{value:.6g}"
