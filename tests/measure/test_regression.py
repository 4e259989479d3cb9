"""Whether the candidate is slower than the champion: exact where there is an answer, silent where there is none."""

from __future__ import annotations

import math
import random
from itertools import product

import pytest

from engineworks.measure.regression import (
    LOOKS,
    Comparison,
    compare_history,
    compare_rounds,
    confidence_of,
    confirm,
    quad_log_ratio,
    round_log_ratio,
    signed_rank_interval,
    trust,
)
from engineworks.measure.statistics import Interval


def test_the_interval_is_what_wilcoxons_test_does_not_reject() -> None:
    """Checked against the test itself: a centre lies in the interval if its signed ranks are not too one-sided."""
    values = [0.3, -0.1, 0.45, 0.8, 0.15, 0.62, -0.33, 0.51, 0.07, 0.94]
    estimate, interval = signed_rank_interval(values, 0.95)
    assert interval is not None
    assert interval.low < estimate < interval.high
    for centre in (interval.low - 0.001, interval.low + 0.001, interval.high - 0.001, interval.high + 0.001):
        inside = interval.low < centre < interval.high
        assert (_p_value([v - centre for v in values]) > 0.05) == inside


def _p_value(values: list[float]) -> float:
    """Two-sided, by all 2ⁿ signs."""
    ranks = sorted(range(len(values)), key=lambda i: abs(values[i]))
    weights = [ranks.index(i) + 1 for i in range(len(values))]
    total = sum(weights)
    seen = sum(w for w, v in zip(weights, values, strict=True) if v > 0)
    extreme = min(seen, total - seen)
    sums = [sum(w for w, s in zip(weights, signs, strict=True) if s) for signs in product((0, 1), repeat=len(values))]
    return sum(1 for s in sums if min(s, total - s) <= extreme) / len(sums)


def test_the_interval_covers_as_often_as_it_says_whatever_the_distribution() -> None:
    random.seed(7)
    misses = 0
    for _ in range(2000):
        values = [random.choice((-1, 1)) * random.expovariate(1) ** 2 for _ in range(14)]
        interval = signed_rank_interval(values, 0.95)[1]
        assert interval is not None
        misses += not interval.low <= 0 <= interval.high
    assert misses / 2000 <= 0.062


def test_below_the_first_look_there_is_no_interval() -> None:
    for rounds in range(LOOKS[0]):
        found = compare_rounds([0.5 + 0.001 * i for i in range(rounds)], 0.02)
        assert (found.verdict, found.interval) == ("inconclusive", None)
        assert found.why == f"{rounds} rounds; an interval needs 11"
    assert compare_rounds([0.5 + 0.001 * i for i in range(LOOKS[0])], 0.02).verdict == "fail"


def test_a_comparison_that_is_made_again_must_be_surer() -> None:
    slower = [0.05 + 0.0001 * i for i in range(11)]
    assert compare_rounds(slower, 0.02).verdict == "fail"
    again = compare_rounds(slower, 0.02, confidence_of(1))
    assert (again.verdict, again.why) == ("inconclusive", "11 rounds; an interval needs 12")
    assert compare_rounds([*slower, 0.052], 0.02, confidence_of(1)).verdict == "fail"


def test_however_often_it_is_compared_again_one_side_errs_in_less_than_one_percent() -> None:
    """Rounds of a candidate that is just beyond the limit: 'pass' is wrong, and only once in a hundred may it come."""
    lot = random.Random(3)
    builds, tries, wrong = 300, 5, 0
    for _ in range(builds):
        for before in range(tries):
            rounds = [lot.gauss(math.log(1.02), 0.01) for _ in range(LOOKS[3])]
            looked = (compare_rounds(rounds[:look], 0.02, confidence_of(before)) for look in LOOKS[:4])
            found = next((c.verdict for c in looked if c.verdict != "inconclusive"), "")
            if found:
                wrong += found == "pass"
                break
    assert wrong / builds <= 0.01 + 2.6 * math.sqrt(0.01 / builds)
    assert sum((1 - confidence_of(n)) / 2 for n in range(100)) <= 0.01 + 1e-12


def test_the_limit_decides_only_where_the_whole_interval_is_on_one_side() -> None:
    shifted = [0.001 * (i - 10) for i in range(20)]
    assert compare_rounds(shifted, 0.02).verdict == "pass"
    assert compare_rounds([x + 0.05 for x in shifted], 0.02).verdict == "fail"
    near = compare_rounds([x + 0.02 for x in shifted], 0.02)
    assert (near.verdict, near.why) == ("inconclusive", "the interval straddles the limit")
    assert compare_rounds([x - 0.5 for x in shifted], 0.02).verdict == "pass"  # faster is never a regression


def test_one_wild_round_does_not_decide() -> None:
    rounds = [0.001 * (i - 10) for i in range(19)] + [3.0]
    assert compare_rounds(rounds, 0.02).verdict == "pass"


def test_a_steady_drift_cancels_within_a_quad() -> None:
    drift = [1.00, 1.02, 1.04, 1.06]
    assert abs(quad_log_ratio([[drift[0]], [drift[3]]], [[drift[1]], [drift[2]]])) < 0.001
    assert quad_log_ratio([[2.0], [2.0]], [[2.2, 2.2, 9.0], [2.2]]) == pytest.approx(math.log(1.1))
    assert round_log_ratio([0.01, 0.02, 5.0]) == 0.02


def test_many_disturbed_rounds_take_the_word_from_the_others() -> None:
    passed = Comparison("pass", 1.0, Interval(0.99, 1.01), 10)
    assert trust(passed, 15, ["noise"] * 5) == passed
    distrusted = trust(passed, 15, ["noise", *["heat"] * 5])
    assert distrusted.verdict == "inconclusive"
    assert distrusted.why == "6 of 15 rounds were disturbed (heat)"


def test_a_fail_must_be_seen_twice() -> None:
    fail, other = (Comparison("fail", r, Interval(1.03, 1.1), 10) for r in (1.05, 1.06))
    passed = Comparison("pass", 1.0, Interval(0.99, 1.01), 10)
    unsure = Comparison("inconclusive", 1.0, Interval(0.9, 1.1), 10, "the interval straddles the limit")
    assert confirm(fail, other) == other
    assert confirm(passed, None) == passed
    assert confirm(fail, passed).verdict == "inconclusive"
    assert "found it 5.0% slower, a second one in a fresh process saw no such thing" in confirm(fail, passed).why
    assert confirm(fail, unsure).verdict == "inconclusive"
    assert confirm(passed, passed) == passed
    assert confirm(passed, fail).verdict == "inconclusive"


def test_history_needs_the_champion_and_enough_measurements() -> None:
    assert compare_history(1.0, "a", [("b", 1.0)] * 9, 0.05).why == "the champion was never measured on this hardware"
    few = compare_history(1.0, "a", [("a", 1.0), ("b", 1.0)], 0.05)
    assert few.verdict == "inconclusive"
    assert "2 measurements in the history are too few" in few.why


def test_history_is_judged_by_its_own_spread() -> None:
    noise = (0.99, 1.01, 1.0, 1.012, 0.988, 1.004, 0.996)
    steady = [("a", ms) for ms in noise]
    assert compare_history(1.0, "a", steady, 0.05).verdict == "pass"
    assert compare_history(1.3, "a", steady, 0.05).verdict == "fail"
    assert compare_history(1.05, "a", steady, 0.05).verdict == "inconclusive"
    changing = [(str(i), ms) for i, ms in enumerate(noise[1:])] + [("a", 1.0)]
    wide, narrow = (compare_history(1.0, "a", h, 0.05).interval for h in (changing, steady))
    assert wide is not None
    assert narrow is not None
    assert wide.half_width > narrow.half_width


def test_a_comparison_survives_json() -> None:
    for interval in (None, Interval(0.99, 1.01)):
        one = Comparison("inconclusive", 1.0, interval, 3, "why")
        assert Comparison.from_json(one.to_json()) == one
