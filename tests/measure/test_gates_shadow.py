"""Checks on a candidate beside its champion, from reports as the step writes them."""

from __future__ import annotations

from typing import Any

import pytest

from engineworks.measure.gates.shadow import shadow_checks, shadow_limits
from engineworks.recipe.performance import Regression

ANSWERS = {"requests": 9, "refused": 0, "equal": 3, "torn": 0, "first_torn": "", "outputs": {"y": {"cosine": 0.999}}}
SHAPE = {"verdict": "pass", "ratio": 1.01, "interval": [1.0, 1.02], "rounds": 11, "why": ""}
REPORT: dict[str, Any] = {
    "champion": "the champion", "identical": False, "answers": {"evaluation": ANSWERS, "recorded": ANSWERS},
    "metric": {"name": "top1", "lower_is_better": False, "candidate": 0.99, "champion": 0.99},
    "latency": {"shapes": {"evaluation": SHAPE}, "attempts": [{}]},
}  # fmt: skip
LIMITS = {"latency": 0.05, "accuracy": 0.005, "cosine": 0.96}


def words(change: dict[str, Any]) -> dict[str, str]:
    return {check.name: check.verdict for check in shadow_checks(REPORT | change, LIMITS)}


def test_a_candidate_that_answers_as_well_and_as_fast_passes_every_check() -> None:
    assert words({}) == {
        "shadow.answers[evaluation]": "pass", "shadow.answers[recorded]": "pass", "shadow.metric": "pass",
        "shadow.latency[evaluation]": "pass",
    }  # fmt: skip
    assert words({"identical": True}) == {"shadow": "pass"}
    assert "shadow.metric" not in words({"metric": None})


def answers(**changes: Any) -> dict[str, Any]:
    return {"answers": {"recorded": {**ANSWERS, **changes}}}


def metric(**changes: Any) -> dict[str, Any]:
    return {"metric": {**REPORT["metric"], **changes}}


@pytest.mark.parametrize(
    ("change", "name", "word"),
    [
        (answers(torn=1, first_torn="request 3: refused"), "shadow.answers[recorded]", "fail"),
        (answers(outputs={"y": {"cosine": 0.9}}), "shadow.answers[recorded]", "fail"),
        (answers(outputs={"y": {"cosine": None}}), "shadow.answers[recorded]", "fail"),
        (answers(refused=9, outputs={}), "shadow.answers[recorded]", "inconclusive"),
        (metric(candidate=0.98), "shadow.metric", "fail"),
        (metric(candidate=1.0, lower_is_better=True), "shadow.metric", "fail"),
        (metric(candidate=None), "shadow.metric", "fail"),
        ({"latency": {"shapes": {"recorded": {**SHAPE, "verdict": "fail"}}, "attempts": [{}]}},
         "shadow.latency[recorded]", "fail"),
    ],
)  # fmt: skip
def test_each_difference_has_its_own_check(change: dict[str, Any], name: str, word: str) -> None:
    assert {n: w for n, w in words(change).items() if w != "pass"} == {name: word}


def test_limits_are_the_recipes_or_defaults() -> None:
    assert shadow_limits(None, None) == {"latency": 0.05, "accuracy": 0.005, "cosine": pytest.approx(0.9602)}
    given = Regression(latency=0.1, accuracy=0.02)
    assert shadow_limits(given, 1.0) == {"latency": 0.1, "accuracy": 0.02, "cosine": 1.0}
