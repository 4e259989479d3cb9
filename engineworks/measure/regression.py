"""Is the candidate slower than the champion? Ratios of medians, their intervals, and the resulting verdict.

The unit is a *round*: both engines loaded again, then timed in short alternating blocks. Samples within a round are
dependent (clock, caches, neighbors), and one load's place in memory shifts all its runs by some percent. More samples
of one load do not reveal that (Kalibera & Jones, Rigorous Benchmarking in Reasonable Time, ISMM 2013). So a round gives
one number, the log of candidate over champion, and only rounds count.

Champion and candidate run in random order. If they are equal, the numbers are symmetric around 0, whatever their
distribution. The signed-rank interval of Hodges & Lehmann (Estimates of Location Based on Rank Tests, 1963; Hollander,
Wolfe & Chicken, Nonparametric Statistical Methods, 2014, 3.2 and 3.3) is then exact.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from statistics import fmean, median
from typing import Literal

from engineworks.measure.statistics import Interval, student_quantile
from engineworks.typed_json import Document

RegressionVerdict = Literal["pass", "fail", "inconclusive"]

LOOKS = (11, 15, 22, 32, 48, 72)
"""Numbers of rounds after which the interval is checked; 11 is the minimum that has an interval."""

CONFIDENCE = 0.99
"""Confidence of all checks together, for the first comparison of two engines (see `confidence_of`).

Each check gets an equal share of the error (Bonferroni).
"""

DISTURBED_SHARE = 1 / 3
"""Maximum share of disturbed rounds; above it the other rounds are not trusted either."""


@dataclass(frozen=True)
class Comparison(Document):
    """Candidate over champion at one shape.

    ratio: of medians, 1.02 is 2% slower. interval: at `CONFIDENCE`, None if there are too few rounds. why: why it does
    not decide, or ''. rounds: those that count.
    """

    verdict: RegressionVerdict
    ratio: float | None
    interval: Interval | None
    rounds: int
    why: str = ""


def quad_log_ratio(champion: Sequence[Sequence[float]], candidate: Sequence[Sequence[float]]) -> float:
    """Log of candidate over champion from blocks of milliseconds, by their medians.

    The order ABBA or BAAB cancels a steady drift of the machine.
    """
    return fmean(math.log(median(b)) for b in candidate) - fmean(math.log(median(b)) for b in champion)


def round_log_ratio(quads: Iterable[float]) -> float:
    """The round's one number: the median of its quads, so that a burst in one quad does not count."""
    return median(quads)


def confidence_of(before: int) -> float:
    """The confidence of a comparison of two engines after `before` comparisons without a decision.

    Measuring until the result fits would produce false passes (optional stopping). So every further comparison gets
    half the error of the one before. At one side of the interval, all of them together err in less than (1 -
    CONFIDENCE) / 2 · (1 + 1/2 + 1/4 + …) = 1 - CONFIDENCE, however many there are. (Alpha spending: Lan & DeMets,
    Discrete Sequential Boundaries for Clinical Trials, Biometrika 1983; the sum is Bonferroni's.)
    """
    return 1 - (1 - CONFIDENCE) * 0.5**before


def compare_rounds(log_ratios: Sequence[float], limit: float, confidence: float = CONFIDENCE) -> Comparison:
    """The result of the rounds so far. limit: 0.05 allows 5% slower. confidence: of all checks together."""
    rounds = len(log_ratios)
    each = 1 - (1 - confidence) / len(LOOKS)
    why = f"{rounds} rounds; an interval needs {least_rounds(each)}"
    if not log_ratios:
        return Comparison("inconclusive", None, None, 0, why)
    estimate, interval = signed_rank_interval(log_ratios, each)
    ratio = math.exp(estimate)
    if interval is None:
        return Comparison("inconclusive", ratio, None, rounds, why)
    return _decide(ratio, Interval(math.exp(interval.low), math.exp(interval.high)), rounds, limit)


def _decide(ratio: float, interval: Interval, rounds: int, limit: float) -> Comparison:
    if interval.high <= 1 + limit:
        return Comparison("pass", ratio, interval, rounds)
    if interval.low > 1 + limit:
        return Comparison("fail", ratio, interval, rounds)
    return Comparison("inconclusive", ratio, interval, rounds, "the interval straddles the limit")


def signed_rank_interval(values: Sequence[float], confidence: float) -> tuple[float, Interval | None]:
    """Hodges-Lehmann estimate of the center (median of all pairwise means, the Walsh averages) and its interval.

    The interval holds what Wilcoxon's signed-rank test does not reject; None if too few values for this confidence.
    """
    n = len(values)
    walsh = sorted((values[i] + values[j]) / 2 for i in range(n) for j in range(i, n))
    cut = _signed_rank_quantile(n, (1 - confidence) / 2)
    interval = Interval(walsh[cut], walsh[len(walsh) - 1 - cut]) if cut is not None else None
    return median(walsh), interval


def least_rounds(confidence: float) -> int:
    """Fewest rounds that have a signed-rank interval: its smallest tail is 2⁻ⁿ at each side."""
    return math.ceil(math.log2(2 / (1 - confidence)) - 1e-9)


@cache
def _signed_rank_quantile(n: int, tail: float) -> int | None:
    """Largest t with P(T⁺ ≤ t) ≤ tail for n untied values: T⁺ is the sum of a random subset of 1…n."""
    counts = [1]
    for rank in range(1, n + 1):
        shifted = [0] * rank + counts
        counts = [a + b for a, b in zip(counts + [0] * rank, shifted, strict=True)]
    below, cut = 0, None
    for t, count in enumerate(counts):
        below += count
        if below > tail * 2**n:
            break
        cut = t
    return cut


def trust(comparison: Comparison, rounds: int, disturbances: Sequence[str]) -> Comparison:
    """The comparison of the undisturbed rounds, or inconclusive if too many of all `rounds` were disturbed.

    disturbances: what disturbed each of the others, one reason each.
    """
    if len(disturbances) <= DISTURBED_SHARE * rounds:
        return comparison
    commonest = max(dict.fromkeys(disturbances), key=list(disturbances).count)
    why = f"{len(disturbances)} of {rounds} rounds were disturbed ({commonest})"
    return Comparison("inconclusive", comparison.ratio, comparison.interval, comparison.rounds, why)


def confirm(first: Comparison, second: Comparison | None) -> Comparison:
    """The comparison to report. A fail needs two measurements in two processes.

    A pass followed by a fail is inconclusive.
    """
    if second is not None and (first.verdict, second.verdict) == ("pass", "fail"):
        why = "the first measurement passed, a second one in a fresh process failed"
        return Comparison("inconclusive", first.ratio, first.interval, first.rounds, why)
    if first.verdict != "fail" or second is None:
        return first
    if second.verdict == "fail":
        return second
    saw = "saw no such thing" if second.verdict == "pass" else f"could not confirm it: {second.why}"
    slower = f"{100 * ((first.ratio or 1.0) - 1):.1f}% slower"
    why = f"the first measurement found it {slower}, a second one in a fresh process {saw}"
    return Comparison("inconclusive", second.ratio, second.interval, second.rounds, why)


LEAST_HISTORY = 5
"""Minimum number of differences between runs for an estimate of their spread."""


def compare_history(
    candidate_ms: float, champion: str, history: Sequence[tuple[str, float]], limit: float
) -> Comparison:
    """The candidate against earlier measurements on the same hardware, where the champion cannot run next to it.

    champion: its digest. history: digest and median latency in ms of every earlier measurement, oldest first. The
    spread between measurements comes from engines measured several times, if there are enough. Otherwise it comes from
    neighbors in time (von Neumann et al., The Mean Square Successive Difference, 1941), which is wider because it
    contains true changes.
    """
    own = [math.log(ms) for digest, ms in history if digest == champion]
    if not own:
        return Comparison("inconclusive", None, None, len(history), "the champion was never measured on this hardware")
    estimate = math.log(candidate_ms) - fmean(own)
    spread = _spread_of_history(history)
    if spread is None:
        why = f"{len(history)} measurements in the history are too few to know how much they differ by themselves"
        return Comparison("inconclusive", math.exp(estimate), None, len(history), why)
    deviation, freedom = spread
    half = student_quantile(0.5 + CONFIDENCE / 2, freedom) * deviation * math.sqrt(1 + 1 / len(own))
    interval = Interval(math.exp(estimate - half), math.exp(estimate + half))
    return _decide(math.exp(estimate), interval, len(history), limit)


def _spread_of_history(history: Sequence[tuple[str, float]]) -> tuple[float, int] | None:
    """Standard deviation between measurements (of the log), and its degrees of freedom; None if too few."""
    by_engine: defaultdict[str, list[float]] = defaultdict(list)
    for digest, ms in history:
        by_engine[digest].append(math.log(ms))
    freedom = sum(len(v) - 1 for v in by_engine.values())
    if freedom >= LEAST_HISTORY:
        squares = sum((x - fmean(v)) ** 2 for v in by_engine.values() for x in v)
        return math.sqrt(squares / freedom), freedom
    logs = [math.log(ms) for _, ms in history]
    steps = [(b - a) ** 2 for a, b in pairwise(logs)]
    return (math.sqrt(sum(steps) / (2 * len(steps))), len(steps)) if len(steps) >= LEAST_HISTORY else None
