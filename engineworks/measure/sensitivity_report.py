"""The sensitivity report: what quantizing each part of a model costs, and the list that meets the recipe's limits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from engineworks.measure.accuracy_report import MetricValues
from engineworks.typed_json import Count, Document, Report, Size


@dataclass(frozen=True)
class Cost(Document):
    """What quantizing some nodes costs. noise: of the worst output, None where values became NaN or infinite; sqnr_db:
    the same in decibels. metric: the task metric. loss: of the metric, as a share of fp32's; None without labels."""

    noise: Size | None
    sqnr_db: float | None
    cosine: float | None
    metric: float | None
    loss: float | None


@dataclass(frozen=True, kw_only=True)
class Part(Cost):
    """A group of nodes, or one node, quantized alone."""

    name: str
    nodes: tuple[str, ...]
    seconds: Size


@dataclass(frozen=True, kw_only=True)
class ModelCost(Cost):
    """metric_of: the metric with fp32's."""

    metric_of: MetricValues | None


@dataclass(frozen=True)
class Effort(Document):
    """pass_seconds: of fp32 over the samples. tried: parts. evaluations: lists."""

    pass_seconds: Size
    tried: Count
    evaluations: Count
    seconds: Size


@dataclass(frozen=True)
class SensitivityReport(Report):
    """groups, parts: the costliest first. candidates: nodes that could be quantized. everything: all of them. limits:
    whether the recipe has any. keep: patterns of what to exclude, None if no list meets the limits; then there is no
    result either. checks: of that list, as JSON."""

    FILE = "sensitivity.json"

    precision: str
    total: Count
    samples: Count
    candidates: Count
    groups: tuple[Part, ...]
    parts: tuple[Part, ...]
    everything: ModelCost
    limits: bool
    keep: tuple[str, ...] | None
    kept_nodes: tuple[str, ...]
    result: ModelCost | None
    checks: tuple[Mapping[str, str], ...]
    cost: Effort
