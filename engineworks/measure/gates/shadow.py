"""Checks on a candidate that was served beside the champion. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from engineworks.measure.check import Check, checked
from engineworks.measure.gates.regression import comparison_message, worse_by
from engineworks.measure.regression import Comparison
from engineworks.measure.statistics import number_text, reaches

Report = Mapping[str, Any]

LATENCY, ACCURACY, COSINE = 0.05, 0.005, 0.99
"""Limits where the recipe has none: of `performance.regression`, and the precision's cosine to fp32."""


def shadow_limits(regression: Any, cosine: float | None) -> dict[str, float]:
    """Return the largest relative growth of latency and loss of the metric, and the smallest cosine of answers.

    regression: the recipe's, or None. cosine: the precision's limit. Two engines that are each within the angle
    acos(c) of fp32 are within twice that angle of each other: their cosine is at least 2c² - 1.
    """
    latency, accuracy = (getattr(regression, name, None) for name in ("latency", "accuracy"))
    c = COSINE if cosine is None else max(cosine, 0.0)
    return {
        "latency": LATENCY if latency is None else latency, "accuracy": ACCURACY if accuracy is None else accuracy,
        "cosine": 2 * c * c - 1,
    }  # fmt: skip


def shadow_checks(report: Report, limits: Mapping[str, float]) -> list[Check]:
    """Return the checks of a report of `steps.shadow`."""
    if report["identical"]:
        return [Check("shadow", "pass", f"{report['champion']} is this very engine, byte for byte.")]
    return [*_answers(report, limits["cosine"]), *_metric(report, limits["accuracy"]), *_latency(report, limits)]


def _answers(report: Report, limit: float) -> Iterator[Check]:
    for group, answers in report["answers"].items():
        name = f"shadow.answers[{group}]"
        text = f"{answers['equal']} of {answers['requests']} answers equal the champion's"
        if answers["torn"]:
            text += f"; {answers['torn']} have no counterpart, the first: {answers['first_torn']}"
            yield Check(name, "fail", f"{text}.")
        elif answers["refused"] == answers["requests"]:
            yield Check(name, "inconclusive", "Both sides refused every request: are they of this model?")
        else:
            cosines = [output["cosine"] for output in answers["outputs"].values()]
            worst = None if None in cosines else min(cosines, default=None)
            good = worst is not None and reaches(worst, limit)
            text += f", {answers['refused']} were refused by both" if answers["refused"] else ""
            text += f"; cosine {number_text(worst)}, limit {number_text(limit)}."
            yield checked(name, good, text)


def _metric(report: Report, limit: float) -> Iterator[Check]:
    metric = report["metric"]
    if metric is None:
        return
    candidate, champion = metric["candidate"], metric["champion"]
    text = (
        f"{metric['name']} of the served answers is {number_text(candidate)}, of the champion's {number_text(champion)}"
    )
    if candidate is None or champion is None:
        yield Check("shadow.metric", "fail", f"{text}.")
        return
    worse = worse_by(candidate, champion, lower_is_better=metric["lower_is_better"])
    text += f", limit {100 * limit:.3g}% worse."
    yield checked("shadow.metric", reaches(limit, worse), text)


def _latency(report: Report, limits: Mapping[str, float]) -> Iterator[Check]:
    latency = report["latency"]
    for group, document in latency["shapes"].items():
        result = Comparison.from_json(document)
        how = f"{result.rounds} rounds side by side, in {len(latency['attempts'])} pairs of servers"
        text = comparison_message(group, result, limits["latency"], str(report["champion"]), how)
        yield Check(f"shadow.latency[{group}]", result.verdict, text)
