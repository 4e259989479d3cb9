"""The serving report: a package's answers on a Triton server, their speed, and what reloads leave behind."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field

from engineworks.typed_json import Count, Document, Report, Size


@dataclass(frozen=True)
class AnswersReport(Document):
    """requests: sent. equal: answers whose every bit is the engine's. worst: by output, the largest relative error of a
    row; None where shapes, dtypes or NaNs differ. errors: of requests without an answer, the first few."""

    requests: Count
    equal: Count
    worst: Mapping[str, float | None]
    errors: tuple[str, ...]

    @property
    def worst_error(self) -> float:
        """The largest of all outputs; infinite where there is none."""
        return max((math.inf if error is None else error for error in self.worst.values()), default=math.inf)


@dataclass(frozen=True)
class Refusal(Document):
    """what: was wrong with a request. words: the server's. right_after: whether the next answer was right."""

    what: str
    refused: bool
    words: str
    right_after: bool


@dataclass(frozen=True)
class ServedMetric(Document):
    """The task metric of the served answers, and of the engine as it was evaluated; None if it is no number."""

    name: str
    judged: float | None
    served: float | None


@dataclass(frozen=True)
class Watched(Document):
    """Triton's metrics during a load, see `serving.metrics`; None for what the server does not tell."""

    readings: Count
    requests: float | None
    failures: float | None
    executions: float | None
    requests_per_s: float | None
    queue_ms: float | None
    compute_ms: float | None
    p99_ms: float | None
    gpu_busy: float | None
    gpu_mib: float | None
    memory_mib: float | None


@dataclass(frozen=True)
class LoadGen(Document):
    """The load generator's own result."""

    result: str
    reasons: tuple[str, ...]
    p99_estimate_ms: float | None
    early_stopping: str


@dataclass(frozen=True)
class Load(Document):
    """One load. others: part of the processor that other programs took. batches: executions by size. holds: whether it
    was answered within the limit, in a search."""

    scenario: Literal["server", "offline"]
    qps: Size
    limit_p99_ms: Size
    seconds: Size
    queries: Count
    errors: Count
    first_error: str
    completed_per_s: Size
    latency_ms_p50: Size | None
    latency_ms_p90: Size | None
    latency_ms_p99: Size | None
    loadgen: LoadGen
    batches: Mapping[str, Count]
    others: Size = 0.0
    watched: Watched | None = None
    holds: bool | None = None

    @property
    def rate(self) -> float:
        """Queries that were answered each second."""
        return self.completed_per_s


@dataclass(frozen=True)
class LoadSearch(Document):
    """rate: the largest queries a second that a load held, 0 where none did."""

    rate: Size
    tries: tuple[Load, ...]
    others: Size = 0.0
    watched: Watched | None = None


@dataclass(frozen=True)
class BatchingPoint(Document):
    """A setting of the dynamic batcher, as in `serving.batching.Batching`, and the largest rate with it."""

    delay_us: Count
    preferred: tuple[Count, ...] | None
    instances: Count
    rate: Size
    tries: tuple[Load, ...]


@dataclass(frozen=True)
class BatchingSweep(Document):
    """gain: the rate of the recommended setting over that without batching; None where the latter is 0."""

    points: Annotated[tuple[BatchingPoint, ...], Field(min_length=1)]
    recommended: BatchingPoint
    gain: Size | None


@dataclass(frozen=True)
class Growth(Document):
    """Growth with each reload, with its 95% interval (`measure.slopes`)."""

    per_step: float
    low: float
    high: float
    readings: Count


@dataclass(frozen=True)
class Reloads(Document):
    """readings: what the server held after each unload. load_s: seconds of each load. slopes: by quantity."""

    readings: tuple[Mapping[str, float], ...]
    answers: AnswersReport
    load_s: tuple[Size, ...]
    slopes: Mapping[str, Growth]


@dataclass(frozen=True)
class Swaps(Document):
    """Exchanges of the model under traffic: requests without an answer, and answers of no version."""

    swaps: Count
    requests: Count
    lost: Count
    mixed: Count
    first_error: str


@dataclass(frozen=True)
class ColdStart(Document):
    ready_s: Size
    first_answer_s: Size


@dataclass(frozen=True, kw_only=True)
class ServingReport(Report):
    """server: its metadata. answers: by way (http, grpc, clients). spread: what batches change in the engine's rows;
    None where they cannot be compared. A running server without a repository here has no backend, ready_s and reload.
    start_s: of a server of our own. cold: by way of loading."""

    FILE = "serving.json"

    server: Mapping[str, Any]
    model: str
    answers: Annotated[Mapping[str, AnswersReport], Field(min_length=1)]
    metric: ServedMetric | None = None
    spread: Size | None
    refusals: tuple[Refusal, ...]
    load: Load | LoadSearch | None = None
    reload: Reloads | None = None
    batching: BatchingSweep | None = None
    backend: str | None = None
    ready_s: Size | None = None
    start_s: Size | None = None
    cold: Mapping[str, ColdStart] | None = None
    swaps: Swaps | None = None

    def summary(self) -> dict[str, Any]:
        """As JSON without the readings of reloads."""
        value = self.to_json()
        reload = {k: v for k, v in value.get("reload", {}).items() if k not in ("readings", "load_s")}
        return {**value, "reload": reload}
