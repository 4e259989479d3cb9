"""Checks on several models that were served at once. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from engineworks.measure.check import Check, checked
from engineworks.measure.statistics import TAILS, enough_for

Report = Mapping[str, Any]


def together_checks(report: Report, memory_mib: float | None, p99_ms: Mapping[str, float | None]) -> list[Check]:
    """Return the checks of `serving.together`. memory_mib: the budget of all models. p99_ms: by model, the limit of its
    recipe's load."""
    return [_memory(report, memory_mib), *_latencies(report, p99_ms)]


def _memory(report: Report, budget: float | None) -> Check:
    parts = ", ".join(f"{model} {one['memory_mib']:.0f}" for model, one in report["models"].items())
    text = f"All models take {report['memory_mib']:.0f} MiB of {report['place']} ({parts})"
    if budget is None:
        return Check("together.memory", "pass", f"{text}; no budget was given.")
    return checked("together.memory", report["memory_mib"] <= budget, f"{text}, limit {budget:g}.")


def _latencies(report: Report, limits: Mapping[str, float | None]) -> Iterator[Check]:
    needed = enough_for(TAILS["p99_ms"])
    for model, one in report["models"].items():
        name, beside, alone, limit = f"together.p99[{model}]", one["beside"], one["alone"], limits[model]
        if error := beside["error"] or alone["error"]:
            yield Check(name, "fail", f"A request got no answer: {error}.")
            continue
        text = f"The 99% latency is {beside['p99_ms']:.4g} ms beside the others and {alone['p99_ms']:.4g} ms alone"
        text += f", limit {limit:g} ms" if limit is not None else "; the recipe has no limit"
        if limit is None:
            yield Check(name, "pass", f"{text}.")
        elif min(beside["requests"], alone["requests"]) < needed:
            yield Check(name, "inconclusive", f"{text}; {needed} requests are enough, {beside['requests']} are not.")
        else:
            yield checked(name, beside["p99_ms"] <= limit, f"{text}.")
