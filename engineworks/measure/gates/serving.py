"""Checks on a served package. Pure: the report of the step `serve` and the recipe's limits in, checks out."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from engineworks.measure.check import Check, CheckVerdict, checked
from engineworks.measure.serving_report import Load, LoadSearch, ServingReport
from engineworks.measure.statistics import TAILS, enough_for

Limits = Mapping[str, Any]
"""`performance.serving.load` as JSON."""

SMALLEST_TOLERANCE = 1e-3
"""Relative error of a row that is always allowed: another order of sums, as in another version of a library."""

SPREADS = 4
"""How much larger than the engine's own spread over batch sizes the error of a served row may be."""

KEEPS_UP = 0.9
"""Part of the offered rate that must be answered."""

FEWEST_RELOADS = 30
"""Reloads from which on their slopes are checks."""

MOST_LEFT_KIB = 64.0
"""Most that a reload may leave behind."""

MOST_OTHERS = 0.25
"""Part of the processor that other programs may take before a load is inconclusive."""


def serving_checks(report: ServingReport | None, limits: Limits | None, unserved_because: str) -> list[Check]:
    """Return the checks of a package. report: None where it was not served."""
    if report is None:
        why = unserved_because or "the engine cannot be run here"
        return [Check("served", "unmeasured", f"The package was not served: {why}.")]
    checks = [*_answers(report), _metric(report), _refusals(report), *_reloads(report), *_swaps(report)]
    if limits is not None:
        verdict, message = load_verdict(report.load, limits)
        checks.append(Check("served.load", verdict, message))
    return [check for check in checks if check is not None]


def _allowed(report: ServingReport) -> float:
    return max(SMALLEST_TOLERANCE, SPREADS * (report.spread or 0.0))


def _answers(report: ServingReport) -> Iterator[Check]:
    allowed = _allowed(report)
    for way, answers in report.answers.items():
        text = f"{answers.equal} of {answers.requests} answers by {way} have the engine's own bits"
        if answers.errors:
            yield Check(f"served.answers[{way}]", "fail", f"{text}; one has none: {answers.errors[0]}.")
            continue
        good = answers.worst_error <= allowed
        message = f"{text}; the worst row differs by {answers.worst_error:.2g}, limit {allowed:.2g}."
        yield checked(f"served.answers[{way}]", good, message)


def _metric(report: ServingReport) -> Check | None:
    metric = report.metric
    if metric is None:
        return None
    served, judged = metric.served, metric.judged
    same = served is not None and judged is not None and math.isclose(served, judged, rel_tol=1e-3, abs_tol=1e-6)
    text = f"{metric.name} of the served answers is {_shown(served)}, of the evaluated engine {_shown(judged)}."
    return checked("served.metric", same, text)


def _refusals(report: ServingReport) -> Check | None:
    if not report.refusals:
        return None
    wrong = [r.what for r in report.refusals if not r.refused]
    harmed = [r.what for r in report.refusals if not r.right_after]
    if harmed:
        return Check("served.refusals", "fail", f"After a request with a wrong {harmed[0]} the next answer was wrong.")
    if wrong:
        return Check("served.refusals", "fail", f"Requests with a wrong {', '.join(wrong)} were answered.")
    count = len(report.refusals)
    return Check("served.refusals", "pass", f"{count} kinds of wrong requests were refused without harm.")


def _reloads(report: ServingReport) -> Iterator[Check]:
    """Check the answers after reloads and, where there were enough, what each reload leaves behind."""
    reload = report.reload
    if not reload:
        return
    times = len(reload.readings)
    wrong = reload.answers.errors or reload.answers.worst_error > _allowed(report)
    text = "not every answer was right" if wrong else "every answer was right"
    yield Check("served.reload", "fail" if wrong else "pass", f"{times} loads and unloads: {text}.")
    for name, slope in reload.slopes.items() if times >= FEWEST_RELOADS else ():
        kib = 1.0 if name.endswith("_kib") else 1024.0  # a file or a thread too many in 16 reloads is a leak
        low, high = kib * slope.low, kib * slope.high
        verdict: CheckVerdict = "pass" if high <= MOST_LEFT_KIB else "fail" if low > MOST_LEFT_KIB else "inconclusive"
        text = f"{slope.per_step:.3g} ({slope.low:.3g} to {slope.high:.3g}) a reload"
        yield Check(f"served.reload[{name}]", verdict, f"{name} grows by {text}, limit {MOST_LEFT_KIB / kib:g}.")


def _swaps(report: ServingReport) -> Iterator[Check]:
    swaps = report.swaps
    if swaps is None:
        return
    text = f"{swaps.swaps} swaps under {swaps.requests} requests: {swaps.lost} lost, {swaps.mixed} mixed"
    why = f": {swaps.first_error}" if swaps.first_error else ""
    yield Check("served.swaps", "fail" if swaps.lost or swaps.mixed else "pass", f"{text}{why}.")


def load_verdict(load: Load | LoadSearch | None, limits: Limits) -> tuple[CheckVerdict, str]:
    """Return the verdict on a load and its reason."""
    if load is None:
        return "unmeasured", "The load was not offered."
    if isinstance(load, LoadSearch):
        rate, text = load.rate, f"within {limits['p99_ms']:g} ms"
        if rate:
            return "pass", f"The largest rate {text} is {rate:.0f} queries a second."
        return "fail", f"No rate was answered {text}."
    p99, wanted = load.latency_ms_p99, enough_for(TAILS["p99_ms"])
    text = f"At {load.qps:g} queries a second the 99% latency is {_shown(p99)} ms, limit {limits['p99_ms']:g} ms"
    if load.errors:
        return "fail", f"{text}; {load.errors} queries got no answer: {load.first_error}."
    if load.others > MOST_OTHERS:
        return "inconclusive", f"{text}; other programs took {100 * load.others:.0f}% of the processor."
    if p99 is None or load.queries < wanted:
        return "inconclusive", f"{text}; {load.queries} queries are too few for it, {wanted} are enough."
    if load.completed_per_s < KEEPS_UP * load.qps:
        return "fail", f"{text}; only {load.completed_per_s:.0f} a second were answered."
    return ("pass" if p99 <= limits["p99_ms"] else "fail"), f"{text}."


def _shown(value: float | None) -> str:
    return "not known" if value is None else f"{value:.4g}"
