"""Which batch to serve with: the rule and the reason. Pure.

The rule: choose the batch with the most samples per second. Its median latency must be within the budget, and its
memory within 70% of the device's. A larger batch must give over 1% more, because smaller differences are unreliable
and the smaller batch answers sooner. Samples per second are batch / median latency, one run at a time.
"""

from __future__ import annotations

from dataclasses import dataclass

from engineworks.measure.latency_report import FailedBatch, Latency, SweepMeasurement
from engineworks.typed_json import Record

MEMORY_SHARE = 0.7
"""Share of the device's memory; the rest is for other engines, other processes and fragmentation."""

MARGIN = 0.01


@dataclass(frozen=True)
class Recommendation(Record):
    """batch: None if no batch meets the rule."""

    batch: int | None
    message: str


def recommend(latency: Latency, latency_ms: float | None) -> Recommendation:
    """The batch to serve with. latency_ms: the recipe's budget, which counts when the result is read, so that another
    one measures nothing again; None without one."""
    memory_total_mib = latency.memory_total_mib
    refused = {p.batch: _refusal(p, latency_ms, memory_total_mib) for p in latency.sweep}
    best: SweepMeasurement | None = None
    for point in sorted(latency.points, key=lambda p: p.batch):
        if not refused[point.batch] and (
            best is None or point.throughput_per_s > best.throughput_per_s * (1 + MARGIN)
        ):  # fmt: skip
            best = point
    left_out = [f"{batch} {why}" for batch, why in sorted(refused.items()) if why]
    unknown = [] if memory_total_mib else ["the device's memory is not known"]
    if best is None:
        return Recommendation(None, "; ".join(["no batch can be recommended", *left_out, *unknown]))
    none = "; no latency budget was given (performance.sweep.latency_ms)"
    within = none if latency_ms is None else f", within {latency_ms:.4g} ms"
    head = f"batch {best.batch}: {best.throughput_per_s:,.0f} samples/s at {best.latency_ms_p50:.3g} ms{within}"
    return Recommendation(best.batch, "; ".join([head, *left_out, *unknown]))


def _refusal(point: SweepMeasurement | FailedBatch, latency_ms: float | None, memory_total_mib: float | None) -> str:
    if isinstance(point, FailedBatch):
        return "could not be run"
    if latency_ms is not None and point.latency_ms_p50 > latency_ms:
        return f"is over the budget ({point.latency_ms_p50:.3g} ms)"
    if memory_total_mib and point.memory_mib > MEMORY_SHARE * memory_total_mib:
        share = f"{100 * MEMORY_SHARE:.0f}% of the device's {memory_total_mib:,.0f} MiB"
        return f"takes {point.memory_mib:,.0f} MiB, over {share}"
    return ""
