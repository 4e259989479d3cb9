"""How fast a reading grows with repetition: the slope of a line through the readings, with its interval."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

from engineworks.measure.serving_report import Growth
from engineworks.measure.statistics import student_quantile

SETTLING = 0.2
"""Part of the readings that is left out: caches and pools fill at first."""

FEWEST = 8


def slope(values: Sequence[float]) -> Growth | None:
    """Return the slope of the readings after they settled; None where there are too few.

    Ordinary least squares; the interval by Student's t on blocks' means would need independent readings, so the
    residuals' first autocorrelation widens it (Bence 1995: effective number of readings n (1 - r) / (1 + r)).
    """
    settled = values[int(SETTLING * len(values)) :]
    n = len(settled)
    if n < FEWEST:
        return None
    middle, mean = (n - 1) / 2, sum(settled) / n
    spread = sum((x - middle) ** 2 for x in range(n))
    per_step = sum((x - middle) * (v - mean) for x, v in enumerate(settled)) / spread
    residuals = [v - mean - per_step * (x - middle) for x, v in enumerate(settled)]
    total = sum(r * r for r in residuals)
    between = sum(a * b for a, b in pairwise(residuals))
    correlation = min(0.9, max(0.0, between / total)) if total > 0 else 0.0
    effective = max(4.0, n * (1 - correlation) / (1 + correlation))
    error = math.sqrt(total / (effective - 2) / spread * n / effective) if total > 0 else 0.0
    half = student_quantile(0.975, int(effective) - 2) * error
    return Growth(per_step, per_step - half, per_step + half, n)


def slopes(readings: Sequence[Mapping[str, float]]) -> dict[str, Growth]:
    """Return the slope of every quantity that all readings have."""
    names = set.intersection(*(set(r) for r in readings)) if readings else set[str]()
    found = {name: slope([r[name] for r in readings]) for name in sorted(names)}
    return {name: one for name, one in found.items() if one is not None}
