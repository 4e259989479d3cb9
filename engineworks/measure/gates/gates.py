"""Reports and limits → verdict. Pure: no files, no clock, no engine.

A verdict is pass, fail, inconclusive (the measurements do not decide) or unmeasured (no host has run the engine). Every
check gives its reason; a measurement that is missing or not finite fails.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from engineworks.measure.accuracy import OutputAccuracy
from engineworks.measure.accuracy_report import Accuracy, MetricValues
from engineworks.measure.check import Check, CheckVerdict, checked, worst
from engineworks.measure.decoder.checks import decoder_checks, perplexity_verdict
from engineworks.measure.gates.slices import slice_checks
from engineworks.measure.latency_report import Latency, ShapeMeasurement
from engineworks.measure.served_checks import served_checks, synthetic_checks
from engineworks.measure.statistics import TAILS, enough_for, number_text, reaches
from engineworks.recipe.performance import Budget
from engineworks.recipe.recipe import METRIC_LIMITS, Limits
from engineworks.tensors import NARROWED


@dataclass(frozen=True)
class Verdict:
    verdict: CheckVerdict
    checks: tuple[Check, ...]

    @property
    def failures(self) -> tuple[Check, ...]:
        """The failures without a waiver."""
        return tuple(c for c in self.checks if c.verdict == "fail" and not c.waived)


def evaluate_gates(
    accuracy: Accuracy | None,
    latency: Latency | None,
    limits: Limits,
    budgets: Mapping[str, Budget],
    *,
    unmeasured_because: str = "",
) -> Verdict:
    """The verdict of one engine from the recipe's limits and the engine's reports (as JSON, None where missing)."""
    if accuracy is None:
        why = unmeasured_because or "it was not compared with the reference"
        return Verdict("unmeasured", (Check("accuracy", "unmeasured", f"Not run: {why}."),))
    checks = [*_accuracy_checks(accuracy, limits), *_performance_checks(latency, budgets, unmeasured_because)]
    return Verdict(worst(checks), tuple(checks))


def with_checks(verdict: Verdict, more: Sequence[Check]) -> Verdict:
    """The verdict with further checks added."""
    checks = (*verdict.checks, *more)
    return Verdict(worst(checks), checks)


def _accuracy_checks(report: Accuracy, limits: Limits) -> Iterator[Check]:
    for name, output in report.outputs.items():
        if output.dtypes:
            yield _other_dtype(name, *output.dtypes)
        if output.misshapen:
            at = output.misshapen
            message = f"{name}: {at.why} (run {at.run}; {at.runs} of {at.of} runs differ)."
            yield Check(f"shape[{name}]", "fail", message)
        yield _finite(name, output)
        for field, meaning in _OUTPUT_LIMITS.items():
            limit = getattr(limits, field)
            if limit is not None:
                yield _output_check(name, field, meaning, output, limit)
    metric = report.metric
    for field in METRIC_LIMITS:
        limit = getattr(limits, field)
        if limit is not None:
            yield _metric_check(field, metric, limit)
    if metric is not None and metric.dead_classes:
        yield _dead_classes(metric)
    if report.decoder is not None:
        given = {"greedy_agreement": limits.greedy_agreement, "token_agreement": limits.token_agreement}
        yield from decoder_checks(report.decoder, metric.agreement if metric else None, given)
    yield from slice_checks(metric, limits.worst_slice_ratio)
    if report.served is not None:
        yield from served_checks(report.served, limits.cosine)
        if limits.synthetic_cosine is not None:
            yield from synthetic_checks(report.served, limits.synthetic_cosine)


_OUTPUT_LIMITS = {
    "cosine": ("cosine similarity", True),
    "sqnr_db": ("signal-to-noise ratio in dB", True),
    "max_abs": ("largest difference", False),
    "mean_abs": ("mean difference", False),
}


ACCURACY_CHECKS = (
    "finite", *_OUTPUT_LIMITS, "shapes", *METRIC_LIMITS, "classes", "worst_slice_ratio", "slices", "synthetic_cosine",
    "greedy_agreement", "token_agreement",
)  # fmt: skip
"""Checks that another precision, or excluding nodes from it, may make pass."""


def _other_dtype(name: str, engine: str, reference: str) -> Check:
    """Check for an output whose dtype differs from the model's: a reader of the model's dtype would misread it.

    Dtypes that TensorRT itself substitutes do not fail.
    """
    verdict: CheckVerdict = "pass" if (engine, reference) in NARROWED else "fail"
    return Check(f"dtype[{name}]", verdict, f"{name}: the engine gives {engine}, the model {reference}.")


def _finite(name: str, output: OutputAccuracy) -> Check:
    bad, text = output.nonfinite, "every value is finite where the reference's is"
    if bad:
        text = f"{bad} of {output.elements + bad} values are NaN or infinite where the reference's are not"
    return checked(f"finite[{name}]", not bad, f"{name}: {text}.")


def _output_check(name: str, field: str, words: tuple[str, bool], output: OutputAccuracy, limit: float) -> Check:
    text, smallest = words
    value = getattr(output, field)
    equal = output.max_abs == 0 and not (output.nonfinite or output.misshapen)
    if field == "sqnr_db" and value is None and equal:
        return Check(f"{field}[{name}]", "pass", f"{name}: equal to the reference.")
    good = _finite_number(value) and (reaches(value, limit) if smallest else reaches(limit, value))
    side = "at least" if smallest else "at most"
    values = (number_text(value), number_text(limit)) if good else _distinct_numbers(value, limit)
    message = f"{name}: {text} to the fp32 reference is {values[0]}, limit {side} {values[1]}."
    if not good and output.worst_row_cosine is not None:
        message += f" Worst sample: {output.worst_row} (cosine {number_text(output.worst_row_cosine)})."
    return checked(f"{field}[{name}]", good, message)


def _metric_check(field: str, metric: MetricValues | None, limit: Any) -> Check:
    if metric is None:
        return Check(field, "fail", f"{field}: no task metric was computed.")
    good, wanted = _metric_verdict(field, metric, limit)
    if metric.kind == "tokens":
        return _perplexity_check(field, metric, limit, good, wanted)
    on_labels = f"{metric.name} on {metric.samples} labelled samples"
    name = "agreement with the fp32 reference" if metric.kind == "agreement" else on_labels
    values = f"{number_text(metric.engine)}, fp32 {number_text(metric.reference)}"
    ratio = f" (ratio {number_text(metric.ratio)})" if field == "metric_ratio" else ""
    message = f"{name}: {values}{ratio}, limit {wanted}."
    if metric.nondeterministic:
        return Check(field, "inconclusive", f"{message} {metric.nondeterministic}")
    if field == "metric_ratio" and metric.ratio is None and metric.reference is not None:
        message += " A ratio says nothing where fp32 is not above zero: use metric, metric_delta or metric_between."
    return checked(field, good, message)


def _perplexity_check(field: str, metric: MetricValues, limit: Any, good: bool, wanted: str) -> Check:
    """Check of a decoder's perplexity; the text may be too short to know a ratio."""
    values = f"{number_text(metric.engine)}, fp32 {number_text(metric.reference)}"
    message = f"perplexity on {metric.samples:,} tokens: {values}"
    if field != "metric_ratio":
        return checked(field, good, f"{message}, limit {wanted}.")
    verdict = perplexity_verdict(metric.ratio, metric.interval, limit)
    low, high = metric.interval or (None, None)
    known = f", 95% interval {number_text(low)} to {number_text(high)}" if low is not None else ""
    message += f" (ratio {number_text(metric.ratio)}{known}), limit {wanted}."
    return Check(field, verdict, message + (" The text is too short to tell." if verdict == "inconclusive" else ""))


def _dead_classes(metric: MetricValues) -> Check:
    """Check for classes that fp32 gets right and the engine does not. A mean over many classes hides them."""
    dead, of = metric.dead_classes, "fp32" if metric.kind == "labels" else "the fp32 reference"
    lost = [f"class {c.label} (0 of {c.samples} right, {of} {c.reference})" for c in dead[:MOST_NAMED]]
    more = f" and {len(dead) - MOST_NAMED} more" if len(dead) > MOST_NAMED else ""
    return Check("classes", "fail", f"{metric.name}: lost {'; '.join(lost)}{more}.")


MOST_NAMED = 5
"""Maximum number of classes that a message names."""


def _metric_verdict(field: str, metric: MetricValues, limit: Any) -> tuple[bool, str]:
    """Whether the metric meets the limit, and the limit in words. Smaller error rates are better."""
    lower, engine, reference = metric.lower_is_better, metric.engine, metric.reference
    shown = " to ".join(map(number_text, limit if field == "metric_between" else [limit]))
    if field == "metric_ratio":
        words = f"at most fp32 / {shown}, smaller is better" if lower else f"at least {shown} of fp32"
        return metric.ratio is not None and reaches(metric.ratio, limit), words
    if engine is None:
        return False, shown
    if field == "metric_delta":
        good = reference is not None and reaches(limit, abs(engine - reference))
        return good, f"a difference of {shown} at most"
    if field == "metric_between":
        return reaches(engine, limit[0]) and reaches(limit[1], engine), shown
    if lower:
        return reaches(limit, engine), f"at most {shown}, smaller is better"
    return reaches(engine, limit), f"at least {shown}"


def _performance_checks(
    latency: Latency | None, budgets: Mapping[str, Budget], unmeasured_because: str
) -> Iterator[Check]:
    for shape, budget in budgets.items():
        for field, limit in budget.model_dump(exclude_none=True).items():
            name = f"{field}[{shape}]"
            if latency is None:
                yield Check(name, "unmeasured", f"{shape}: not measured: {unmeasured_because or 'no report'}.")
            else:
                yield _budget_check(name, shape, field, latency.shapes[shape], latency, limit)


def disturbed_budgets(latency: Latency, budgets: Mapping[str, Budget]) -> list[str]:
    """Names of the budgets whose measurements are unreliable because the device was disturbed."""
    return [
        f"{field}[{shape}]"
        for shape, budget in budgets.items()
        for field in budget.model_dump(exclude_none=True)
        if shape in latency.shapes and _complaints(field, latency.shapes[shape], latency)
    ]


def _budget_check(name: str, shape: str, field: str, values: ShapeMeasurement, report: Latency, limit: float) -> Check:
    text, key, unit = _BUDGETS[field]
    value = getattr(report if key in _OF_THE_ENGINE else values, key)
    smallest = field in ("throughput_per_s", "tokens_per_s")
    good = _finite_number(value) and (reaches(value, limit) if smallest else reaches(limit, value))
    side = "at least" if smallest else "at most"
    shown = (number_text(value), number_text(limit)) if good else _distinct_numbers(value, limit)
    message = f"{shape}: {text} is {shown[0]} {unit}, budget {side} {shown[1]} {unit}."
    if again := report.disturbed_before:
        message += f" Measured again: {again} measurement{'s' * (again > 1)} before {'were' if again > 1 else 'was'}"
        message += " disturbed."
    if doubts := _complaints(field, values, report):
        doubtful = f"Not to be trusted: {'; '.join(doubts)}. The next build measures again."
        return Check(name, "inconclusive", f"{message} {doubtful}")
    if field in TAILS and values.runs < (needed := enough_for(TAILS[field])):
        few = f"{values.runs} runs are too few to know a {field.removesuffix('_ms')}: that needs {needed}."
        return Check(name, "inconclusive", f"{message} {few}")
    return checked(name, good, message)


def _complaints(field: str, values: ShapeMeasurement, report: Latency) -> tuple[str, ...]:
    """Disturbances of the device during the measurement, which then neither passes nor fails.

    A disturbance can bias a result either way: freed memory, clocks kept high, cores taken by another process.
    """
    if field == "engine_mib":
        return ()
    return report.load_complaints if field == "load_ms" else values.complaints


_OF_THE_ENGINE = ("load_ms", "engine_mib")
"""Measurements that an engine has once, whatever the shape."""

_BUDGETS = {
    "p50_ms": ("median latency", "latency_ms_p50", "ms"),
    "p90_ms": ("90% latency", "latency_ms_p90", "ms"),
    "p99_ms": ("99% latency", "latency_ms_p99", "ms"),
    "throughput_per_s": ("throughput", "throughput_per_s", "samples/s"),
    "memory_mib": ("memory", "memory_mib", "MiB"),
    "load_ms": ("load time", "load_ms", "ms"),
    "first_run_ms": ("the first run", "first_run_ms", "ms"),
    "engine_mib": ("engine size", "engine_mib", "MiB"),
    "first_token_ms": ("first token", "first_token_ms", "ms"),
    "tokens_per_s": ("speed", "tokens_per_s", "tokens/s"),
}


def _finite_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _distinct_numbers(value: float | None, limit: float) -> tuple[str, str]:
    """Both numbers with enough digits to differ: not '1, limit at least 1'."""
    if not _finite_number(value) or value == limit:
        return number_text(value), number_text(limit)
    digits = next(n for n in range(6, 18) if f"{value:.{n}g}" != f"{limit:.{n}g}")
    return f"{value:.{digits}g}", f"{limit:.{digits}g}"
