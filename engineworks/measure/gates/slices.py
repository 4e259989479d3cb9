"""Checks of slices: none is lost, and none is below the limit for the worst one. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from engineworks.measure.accuracy_report import MetricValues
from engineworks.measure.check import Check
from engineworks.measure.slices import Slice, samples_needed
from engineworks.measure.statistics import number_text, reaches

MOST_NAMED = 5
"""Maximum number of slices that a message names."""


def slice_checks(metric: MetricValues | None, limit: float | None) -> Iterator[Check]:
    """A failure for slices that are lost, whatever the limits, and one check of `worst_slice_ratio` if it is given."""
    slices, name = (metric.slices, metric.name) if metric else ((), "")
    doubt = metric.nondeterministic if metric else ""
    if lost := [s for s in slices if s.lost]:
        yield Check("slices", "inconclusive" if doubt else "fail", f"{name}: lost {_named(lost)}. {doubt}".rstrip())
    if limit is None:
        return
    if doubt:
        yield Check("worst_slice_ratio", "inconclusive", f"worst_slice_ratio: {doubt}")
        return
    if not slices:
        yield Check("worst_slice_ratio", "fail", "worst_slice_ratio: no slice was measured.")
        return
    yield _worst(name, slices, limit)


def _worst(name: str, slices: Sequence[Slice], limit: float) -> Check:
    wanted = f"limit at least {number_text(limit)} of fp32 on every slice"
    below = [s for s in slices if not s.why and not reaches(s.high, limit)]
    if below:
        return Check("worst_slice_ratio", "fail", f"{name}: {_named(below)}; {wanted}.")
    unclear = [s for s in slices if s.why or not reaches(s.low, limit)]
    if unclear:
        needed = [n for s in unclear if s.ratio and (n := samples_needed(limit, s.ratio)) and n > s.samples]
        more = f" Such a limit needs about {max(needed)} samples of a slice." if needed else ""
        message = f"{name}: too few samples to tell: {_named(unclear)}; {wanted}.{more}"
        return Check("worst_slice_ratio", "inconclusive", message)
    worst = min(slices, key=lambda s: s.ratio or 0)
    return Check("worst_slice_ratio", "pass", f"{name}: the worst of {len(slices)} is {_described(worst)}; {wanted}.")


def _named(slices: Sequence[Slice]) -> str:
    """The worst slices by name, and how many more there are."""
    worst_first = sorted(slices, key=lambda s: s.ratio or 0)
    more = f" and {len(slices) - MOST_NAMED} more" if len(slices) > MOST_NAMED else ""
    return "; ".join(map(_described, worst_first[:MOST_NAMED])) + more


def _described(one: Slice) -> str:
    if one.why:
        return f"slice '{one.name}' ({one.samples} samples: {one.why})"
    bounds = "" if one.ratio is None else f", ratio {one.ratio:.4g}, 95% {one.low:.3g} to {one.high:.3g}"
    count = f"{one.samples} sample{'s' * (one.samples != 1)}"
    return f"slice '{one.name}' {number_text(one.engine)}, fp32 {number_text(one.reference)} ({count}{bounds})"
