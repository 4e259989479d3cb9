"""Candidate against champion → checks with reasons. Pure: no files, no clock, no engine."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from engineworks.measure.accuracy_report import Accuracy
from engineworks.measure.champion import Champion
from engineworks.measure.champion_report import ChampionComparison
from engineworks.measure.check import Check, checked
from engineworks.measure.latency_report import Latency
from engineworks.measure.regression import CONFIDENCE, Comparison, compare_history
from engineworks.measure.statistics import reaches
from engineworks.recipe.performance import Regression

Report = Mapping[str, Any]


def regression_checks(
    regression: Regression | None,
    champion: Champion | None,
    *,
    comparison: ChampionComparison | None = None,
    latency: Latency | None = None,
    accuracy: Accuracy | None = None,
    compare: Report | None = None,
    unmeasured_because: str = "",
    champion_unknown: str = "",
    champion_lost: str = "",
) -> list[Check]:
    """The checks of `performance.regression`; none if the recipe does not ask for them.

    comparison: the report of the comparison with the champion. latency, accuracy: the candidate's reports. compare: the
    document of the step that made `accuracy`.
    """
    if regression is None:
        return []
    asked = [name for name in ("latency", "accuracy") if getattr(regression, name) is not None]
    if champion_unknown:
        text = f"Not compared: the champion lookup failed ({champion_unknown})."
        return [Check(f"regression.{name}", "inconclusive", text) for name in asked]
    if champion_lost:
        text = f"Not compared: the champion is missing: {champion_lost}. {LOST}"
        return [Check(f"regression.{name}", "inconclusive", text) for name in asked]
    if champion is None:
        text = "No champion yet: nothing to compare with."
        return [Check(f"regression.{name}", "pass", text) for name in asked]
    checks: list[Check] = []
    if regression.latency is not None:
        checks += _latency_checks(regression.latency, champion, comparison, latency, unmeasured_because)
    if regression.accuracy is not None:
        checks.append(_accuracy_check(regression.accuracy, champion, accuracy, compare, unmeasured_because))
    return checks


def _latency_checks(
    limit: float,
    champion: Champion,
    comparison: ChampionComparison | None,
    latency: Latency | None,
    unmeasured_because: str,
) -> Iterator[Check]:  # fmt: skip
    name = "regression.latency"
    if comparison is None:
        why = unmeasured_because or "there is no report"
        yield Check(name, "unmeasured", f"Not measured against {champion}: {why}.")
    elif comparison.method == "identical":
        yield Check(name, "pass", f"{_begin(champion)} is this very engine, byte for byte: nothing to measure.")
    elif comparison.method == "history":
        for shape, history in comparison.history.items():
            yield _history_check(f"{name}[{shape}]", shape, limit, champion, comparison, history, latency)
    else:
        for shape, result in comparison.shapes.items():
            yield _comparison_check(f"{name}[{shape}]", shape, limit, champion, comparison, result)


def _comparison_check(
    name: str, shape: str, limit: float, champion: Champion, comparison: ChampionComparison, result: Comparison
) -> Check:
    times = len(comparison.attempts)
    how = f"{result.rounds} rounds side by side" + (f", in the last of {times} processes" if times > 1 else "")
    message = comparison_message(shape, result, limit, str(champion), how, comparison.confidence)
    return Check(name, result.verdict, message + _earlier(len(comparison.earlier), comparison.confidence))


def _earlier(before: int, confidence: float) -> str:
    """States how many comparisons came before, which repeated builds would otherwise hide."""
    if not before:
        return ""
    others = "one before did" if before == 1 else f"{before} before did"
    return f" Compared again: the {others} not decide, so this one needs a confidence of {_confidence(confidence)}."


def _history_check(
    name: str,
    shape: str,
    limit: float,
    champion: Champion,
    comparison: ChampionComparison,
    history: Any,
    latency: Latency | None,
) -> Check:  # fmt: skip
    stand_in = (
        f"{_begin(champion)} does not run here ({comparison.why.rstrip('.')}), so this is against what was measured"
    )
    stand_in += " before on the same hardware and driver."
    if latency is None:
        return Check(name, "unmeasured", f"{shape}: not measured. {stand_in}")
    if disturbed := latency.shapes[shape].complaints:
        doubtful = f"Not to be trusted: {'; '.join(disturbed)}. The next build measures again."
        return Check(name, "inconclusive", f"{shape}: {stand_in} {doubtful}")
    measured = [(digest, ms) for digest, ms in history if digest != comparison.digest]
    result = compare_history(latency.shapes[shape].latency_ms_p50, champion.digest, measured, limit)
    how = f"{result.rounds} measurements in MLflow"
    text = f"{comparison_message(shape, result, limit, str(champion), how)} {stand_in}"
    return Check(name, result.verdict, f"{text} {WAY_OUT}" if result.verdict == "inconclusive" else text)


LOST = (
    "'engineworks rollback' goes back to the champion before it; where there is none, release once without "
    "performance.regression."
)

WAY_OUT = (
    "If that cannot be fixed: 'engineworks rollback' to a champion that runs here, or release once without "
    "performance.regression."
)


def comparison_message(
    shape: str, result: Comparison, limit: float, champion: str, how: str, confidence: float = CONFIDENCE
) -> str:
    """'single: 1.2% slower than the champion …, 99% interval 0.4% to 2.1% slower, limit 5%: 14 rounds …'"""
    text = f"{shape}: "
    if result.ratio is not None:
        text += f"{_slower(result.ratio)} than {champion}"
        if result.interval is not None:
            low, high = _slower(result.interval.low), _slower(result.interval.high)
            text += f", {_confidence(confidence)} interval {low} to {high}"
    else:
        text += f"cannot be compared with {champion}"
    text += f", limit {_percent(limit)} slower ({how})."
    return f"{text} Inconclusive: {result.why}." if result.why else text


def _accuracy_check(
    limit: float, champion: Champion, accuracy: Accuracy | None, compare: Report | None, unmeasured_because: str
) -> Check:
    name = "regression.accuracy"
    if accuracy is None or compare is None:
        why = unmeasured_because or "there is no report"
        return Check(name, "unmeasured", f"Not compared with {champion}: {why}.")
    if champion.accuracy is None or champion.compare is None:
        return Check(name, "inconclusive", f"Run {champion.run} of {champion} holds no accuracy to compare with.")
    if changed := _what_changed(champion.compare, compare):
        message = f"Cannot be compared with {champion}: {changed} changed since. Release one without this check, "
        return Check(name, "inconclusive", f"{message}or measure the champion on the same data.")
    metrics = (accuracy.metric, champion.accuracy.metric)
    if doubt := next((metric.nondeterministic for metric in metrics if metric and metric.nondeterministic), ""):
        return Check(name, "inconclusive", f"Cannot be compared with {champion}. {doubt}")
    value, then = accuracy.metric, champion.accuracy.metric.engine if champion.accuracy.metric else None
    if value is None or value.engine is None or then is None:
        return Check(name, "fail", f"No metric to compare with {champion}.")
    worse = worse_by(value.engine, then, lower_is_better=value.lower_is_better)
    text = f"{value.name} is {value.engine:.6g}, that of {champion} {then:.6g}: "
    text += f"{_percent(abs(worse))} {'worse' if worse > 0 else 'better'}" if worse else "the same"
    return checked(name, reaches(limit, worse), f"{text}, limit {_percent(limit)} worse.")


def _what_changed(then: Report, now: Report) -> str:
    """Why the two metrics cannot be compared, or ''."""
    if then["digests"].get("evaluation") != now["digests"].get("evaluation"):
        return "the evaluation data"
    same = ("samples", "labels")
    if any(then["params"].get(k) != now["params"].get(k) for k in same):
        return "the choice of evaluation samples"
    metric = [{k: v for k, v in d["digests"].items() if k != "evaluation"} for d in (then, now)]
    if then["params"].get("metric") != now["params"].get("metric") or metric[0] != metric[1]:
        return "the metric"
    return ""


def worse_by(value: float, baseline: float, *, lower_is_better: bool) -> float:
    """How much worse than the champion, relative to it; an error metric is worse when it grows."""
    drop = value - baseline if lower_is_better else baseline - value
    if baseline:
        return drop / abs(baseline)
    return math.copysign(math.inf, drop) if drop else 0.0


def _begin(champion: Champion) -> str:
    text = str(champion)
    return text[:1].upper() + text[1:]


def _slower(ratio: float) -> str:
    return f"{abs(100 * (ratio - 1)):.1f}% {'slower' if ratio >= 1 else 'faster'}"


def _confidence(value: float) -> str:
    """99%, 99.5%, 99.75%: enough digits not to round to 100%."""
    return f"{100 * value:.10g}%"


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.3g}%"
