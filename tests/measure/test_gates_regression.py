"""Checks against the champion: each says what was compared with what, and how well it is known."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from engineworks.measure.champion import Champion
from engineworks.measure.champion_report import ChampionComparison
from engineworks.measure.gates.gates import Verdict, with_checks
from engineworks.measure.gates.regression import regression_checks
from engineworks.measure.regression import confidence_of
from engineworks.recipe.performance import Regression
from tests.typed_reports import accuracy, champion_comparison, latency, metric, shape_json

COMPARE = {"digests": {"evaluation": "e"}, "params": {"samples": {"count": 5}, "labels": "y", "metric": "top1"}}
CHAMPION = Champion("tiny/fp32/cpu", "tiny", "3", "abc", "key", "run9", accuracy(metric(0.98)), COMPARE)
LATENCY = Regression(latency=0.05)
ACCURACY = Regression(accuracy=0.005)


EMPTY = {"seconds": 1.0, "shapes": {}, "rounds": []}


def measured(verdict: str, why: str = "", attempts: int = 1, before: int = 0, **changes: Any) -> ChampionComparison:
    shape = {"verdict": verdict, "ratio": 1.012, "interval": [0.996, 1.02], "rounds": 15, "why": why} | changes
    earlier = {"key": "k", "method": "measured", "confidence": 0.99, "shapes": {}}
    return champion_comparison(
        shapes={"one": shape}, attempts=[EMPTY] * attempts, earlier=[earlier] * before,
        confidence=confidence_of(before),
    )  # fmt: skip


def test_nothing_is_checked_that_was_not_asked() -> None:
    assert regression_checks(None, CHAMPION) == []
    assert [c.name for c in regression_checks(ACCURACY, None)] == ["regression.accuracy"]


def test_the_first_release_has_nothing_to_compare_with() -> None:
    checks = regression_checks(Regression(latency=0.05, accuracy=0.01), None)
    assert [(c.verdict, c.message) for c in checks] == [("pass", "No champion yet: nothing to compare with.")] * 2


def test_the_champion_itself_passes_unmeasured() -> None:
    (check,) = regression_checks(LATENCY, CHAMPION, comparison=champion_comparison("identical"))
    assert check.verdict == "pass"
    assert check.message == ("The champion (version 3 of tiny) is this very engine, byte for byte: nothing to measure.")


def test_a_measured_one_says_ratio_interval_and_limit() -> None:
    (check,) = regression_checks(LATENCY, CHAMPION, comparison=measured("pass"))
    assert (check.name, check.verdict) == ("regression.latency[one]", "pass")
    assert check.message == (
        "one: 1.2% slower than the champion (version 3 of tiny), 99% interval 0.4% faster to 2.0% slower, "
        "limit 5% slower (15 rounds side by side)."
    )
    (check,) = regression_checks(LATENCY, CHAMPION, comparison=measured("fail", attempts=2))
    assert check.verdict == "fail"
    assert "15 rounds side by side, in the last of 2 processes" in check.message


def test_an_undecided_one_says_why() -> None:
    undecided = measured("inconclusive", "4 of 9 rounds were disturbed (noise)", ratio=None, interval=None, rounds=0)
    (check,) = regression_checks(LATENCY, CHAMPION, comparison=undecided)
    assert check.verdict == "inconclusive"
    assert check.message == (
        "one: cannot be compared with the champion (version 3 of tiny), limit 5% slower (0 rounds side by side). "
        "Inconclusive: 4 of 9 rounds were disturbed (noise)."
    )
    assert with_checks(Verdict("pass", ()), [check]).verdict == "inconclusive"
    assert with_checks(Verdict("fail", ()), [check]).verdict == "inconclusive"  # only checks decide


def test_one_that_was_measured_before_without_a_decision_says_so_and_is_held_to_more() -> None:
    (check,) = regression_checks(LATENCY, CHAMPION, comparison=measured("pass", before=1))
    assert "99.5% interval" in check.message
    assert check.message.endswith(
        "Compared again: the one before did not decide, so this one needs a confidence of 99.5%."
    )
    (check,) = regression_checks(LATENCY, CHAMPION, comparison=measured("fail", attempts=2, before=3))
    assert check.message.endswith(
        "Compared again: the 3 before did not decide, so this one needs a confidence of 99.875%."
    )


def test_without_a_report_it_is_unmeasured() -> None:
    (check,) = regression_checks(LATENCY, CHAMPION, unmeasured_because="there is no GPU here")
    assert check.verdict == "unmeasured"
    assert check.message == "Not measured against the champion (version 3 of tiny): there is no GPU here."


def test_history_stands_in_and_is_named() -> None:
    history = [["abc", ms] for ms in (1.0, 1.01, 0.99, 1.0, 1.005, 0.995, 1.0)]
    report = champion_comparison("history", why="it is gone.", history={"one": [*history, ["new", 9.0]]})
    (check,) = regression_checks(LATENCY, CHAMPION, comparison=report, latency=latency())
    assert check.verdict == "pass"
    assert "7 measurements in MLflow" in check.message
    assert "does not run here (it is gone), so this is against what was measured before" in check.message
    noisy = latency({"one": shape_json(complaints=["the clocks were lowered"])})
    (check,) = regression_checks(LATENCY, CHAMPION, comparison=report, latency=noisy)
    assert check.verdict == "inconclusive"
    assert check.message.endswith("Not to be trusted: the clocks were lowered. The next build measures again.")
    report = champion_comparison("history", why="it is gone.", history={"one": history[:2]})
    (check,) = regression_checks(LATENCY, CHAMPION, comparison=report, latency=latency())
    assert check.verdict == "inconclusive"
    assert check.message.endswith("or release once without performance.regression.")


@pytest.mark.parametrize(
    ("value", "word", "part"),
    [
        (0.98, "pass", "0.98: the same, limit 0.5% worse"),
        (0.976, "pass", "0.408% worse"),
        (0.97, "fail", "1.02% worse"),
        (0.99, "pass", "1.02% better"),
        (None, "fail", "No metric to compare"),
    ],
)
def test_accuracy_is_held_against_the_champions_own(value: float | None, word: str, part: str) -> None:
    (check,) = regression_checks(ACCURACY, CHAMPION, accuracy=accuracy(metric(value)), compare=COMPARE)
    assert check.verdict == word
    assert part in check.message


@pytest.mark.parametrize("whose", ["candidate", "champion"])
def test_a_metric_that_answers_in_two_ways_decides_nothing(whose: str) -> None:
    steady, random = accuracy(metric(0.98)), accuracy(metric(0.98, name="own:score", repeated=0.91))
    champion = replace(CHAMPION, accuracy=random if whose == "champion" else steady)
    candidate = random if whose == "candidate" else steady
    (check,) = regression_checks(ACCURACY, champion, accuracy=candidate, compare=COMPARE)
    assert check.verdict == "inconclusive"
    assert "own:score gave 0.98 and then 0.91 for the same outputs" in check.message


def test_a_metric_of_errors_is_worse_when_it_grows() -> None:
    (check,) = regression_checks(
        ACCURACY, CHAMPION, accuracy=accuracy(metric(0.97, lower_is_better=True)), compare=COMPARE
    )
    assert check.verdict == "pass"
    (check,) = regression_checks(
        ACCURACY, CHAMPION, accuracy=accuracy(metric(0.99, lower_is_better=True)), compare=COMPARE
    )
    assert check.verdict == "fail"


@pytest.mark.parametrize(
    ("then", "word"),
    [
        ({**COMPARE, "digests": {"evaluation": "other"}}, "the evaluation data"),
        ({**COMPARE, "params": {**COMPARE["params"], "samples": {"count": 4}}}, "the choice of evaluation samples"),
        ({**COMPARE, "params": {**COMPARE["params"], "metric": "m:f"}}, "the metric"),
        ({**COMPARE, "digests": {"evaluation": "e", "metric m.py": "x"}}, "the metric"),
    ],
)
def test_other_data_can_not_be_compared(then: Any, word: str) -> None:
    champion = replace(CHAMPION, compare=then)
    (check,) = regression_checks(ACCURACY, champion, accuracy=accuracy(metric(0.98)), compare=COMPARE)
    assert check.verdict == "inconclusive"
    assert f"{word} changed since" in check.message


def test_a_champion_without_a_record_can_not_be_compared() -> None:
    champion = replace(CHAMPION, accuracy=None)
    (check,) = regression_checks(ACCURACY, champion, accuracy=accuracy(metric(0.98)), compare=COMPARE)
    assert check.verdict == "inconclusive"


def test_an_unknown_champion_is_no_pass() -> None:
    checks = regression_checks(Regression(latency=0.05, accuracy=0.01), None, champion_unknown="MLflow is down")
    assert [c.verdict for c in checks] == ["inconclusive", "inconclusive"]
    assert "the champion lookup failed (MLflow is down)" in checks[0].message


def test_an_accuracy_that_is_worse_by_exactly_the_limit_passes() -> None:
    (check,) = regression_checks(ACCURACY, CHAMPION, accuracy=accuracy(metric(0.98 * 0.995)), compare=COMPARE)
    assert (check.verdict, "0.5% worse, limit 0.5% worse" in check.message) == ("pass", True)
