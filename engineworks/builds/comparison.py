"""A comparison with peers: framework × precision at every named shape, with speed-ups over a base."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_PEER_METRICS = ("latency_ms_p50", "latency_ms_p99", "throughput_per_s", "memory_mib", "load_ms", "speedup")


@dataclass(frozen=True)
class ComparisonRow:
    """One framework in one precision at one shape. name: 'pytorch-fp16', or 'fp16/rtx40' for an engine. cosine: to the
    fp32 reference, per output. speedup: the base's median latency divided by this one's. note: why there are no
    measurements, or a remark."""

    name: str
    framework: str
    precision: str
    shape: str
    engine: bool = False
    dims: Mapping[str, int] | None = None
    latency_ms_p50: float | None = None
    latency_ms_p99: float | None = None
    throughput_per_s: float | None = None
    memory_mib: float | None = None
    load_ms: float | None = None
    first_run_ms: float | None = None
    device_ms_p50: float | None = None
    cosine: Mapping[str, float | None] | None = None
    right: bool = False
    speedup: float | None = None
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        return {k: v for k, v in vars(self).items() if k != "right"}


@dataclass(frozen=True)
class Comparison:
    """over: base of the speed-ups, '' where none ran. shapes: in the recipe's order."""

    over: str
    shapes: tuple[str, ...]
    rows: tuple[ComparisonRow, ...]

    def at(self, shape: str) -> list[ComparisonRow]:
        return [row for row in self.rows if row.shape == shape]

    def to_json(self) -> dict[str, Any]:
        return {"over": self.over, "rows": [row.to_json() for row in self.rows]}


def comparison_metrics(comparison: Comparison | None) -> dict[str, float]:
    """Return metrics: 'peer_latency_ms_p50/pytorch-fp32/SHAPE' and the like, 'engine_speedup/fp16/cpu/SHAPE'."""
    metrics: dict[str, float] = {}
    for row in comparison.rows if comparison else ():
        fields = ("speedup",) if row.engine else _PEER_METRICS
        values = {field: getattr(row, field) for field in fields}
        kind = "engine" if row.engine else "peer"
        metrics |= {f"{kind}_{field}/{row.name}/{row.shape}": value for field, value in values.items() if value}
    return metrics
