"""The latency report: load time, latency and memory of a stored engine, or of a baseline, at named shapes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

from engineworks.measure.accuracy import OutputAccuracy
from engineworks.typed_json import Count, Document, Report, Size


@dataclass(frozen=True)
class Omitted(Document):
    """The number of raw samples, in place of a long list of them."""

    values: Count


Samples = tuple[float, ...] | Omitted


@dataclass(frozen=True)
class Streams(Document):
    """Runs with several in flight."""

    streams: Count
    runs_per_s: Size
    samples_per_s: Size
    seconds: Size


@dataclass(frozen=True, kw_only=True)
class TimedRuns(Document):
    """Milliseconds of runs at one shape, without copies.

    device_*: None without a device clock. median_interval: 95%, None with too few samples. notes: what to know before
    trusting the result. samples: every timed run in order, after the warm-up.
    """

    latency_ms_p50: Size
    latency_ms_p90: Size
    latency_ms_p99: Size
    latency_ms_mean: Size
    median_interval: tuple[float, float] | None
    device_ms_p50: Size | None
    device_ms_p90: Size | None
    device_ms_p99: Size | None
    throughput_per_s: Size
    runs: Count
    warmup_runs: Count
    warmup_s: Size
    settled: bool
    notes: tuple[str, ...]
    samples: Samples = ()
    device_samples: Samples = ()


@dataclass(frozen=True, kw_only=True)
class ShapeMeasurement(TimedRuns):
    """The figures of one shape: `steps.shape_measurements` says what they mean.

    profile: that admits the shape, None for none. tail: whether p99 had to be known. memory_mib: what loading and
    running adds. complaints: disturbances of the device. Those below `complaints` are a decoder's (`steps.decoder`).
    """

    dims: Mapping[str, int]
    profile: str | None = None
    tail: bool
    copies_ms_p50: Size | None
    copies_ms_p90: Size | None
    copies_ms_p99: Size | None
    copies_device_ms_p50: Size | None
    copies_device_ms_p90: Size | None
    copies_device_ms_p99: Size | None
    copies_samples: Samples = ()
    copies_device_samples: Samples = ()
    first_run_ms: Size
    streams: tuple[Streams, ...]
    seconds: Size
    cost_ratio: Size | None
    memory_mib: float
    complaints: tuple[str, ...]
    first_token_ms: Size | None = None
    first_token_ms_p50: Size | None = None
    first_token_ms_p90: Size | None = None
    first_token_ms_p99: Size | None = None
    first_token_samples: Samples = ()
    prefill_tokens_per_s: Size | None = None
    tokens_per_s: Size | None = None
    tokens_per_s_stream: Size | None = None
    cache_bytes_per_token: Size | None = None
    cache_mib_per_stream: Size | None = None
    streams_that_fit: Count | None = None

    def without_samples(self) -> dict[str, Any]:
        """As JSON without the lists of raw samples: the record has them."""
        return {k: v for k, v in self.to_json().items() if not k.endswith("samples")}


@dataclass(frozen=True, kw_only=True)
class SweepMeasurement(ShapeMeasurement):
    """One batch of the sweep. shape: the named shape that it equals, which was measured once for both; '' for none."""

    batch: Count
    shape: str = ""


@dataclass(frozen=True)
class FailedBatch(Document):
    """A batch of the sweep that could not be run, and why."""

    batch: Count
    dims: Mapping[str, int]
    profile: str | None
    tail: bool
    error: str

    def without_samples(self) -> dict[str, Any]:
        return self.to_json()


@dataclass(frozen=True)
class DeviceRecord(Document):
    """Every reading of the device, each with its place and second, and the complaints by place."""

    readings: tuple[Mapping[str, Any], ...]
    complaints: tuple[str, ...]


@dataclass(frozen=True)
class Latency(Report):
    """shapes: by name. sweep: by batch, ascending. serving: how the engine was run. disturbed_before: earlier noisy
    measurements. notes, facts: the session's own. loads: with and without the device's cache, where it has one."""

    FILE = "latency.json"

    load_ms: Size
    engine_mib: Size
    memory_total_mib: Size | None
    shapes: Mapping[str, ShapeMeasurement]
    sweep: tuple[SweepMeasurement | FailedBatch, ...]
    serving: Mapping[str, Any]
    disturbed_before: Count
    notes: tuple[str, ...]
    facts: Mapping[str, Any]
    load_complaints: tuple[str, ...]
    device: DeviceRecord
    loads: Mapping[str, Mapping[str, float]]

    @property
    def first(self) -> ShapeMeasurement | None:
        """At the recipe's first named shape."""
        return next(iter(self.shapes.values()), None)

    @property
    def points(self) -> tuple[SweepMeasurement, ...]:
        """The batches of the sweep that could be run."""
        return tuple(point for point in self.sweep if isinstance(point, SweepMeasurement))


@dataclass(frozen=True)
class PeerLatency(Report):
    """A baseline. import_ms: of its library. outputs: their accuracy."""

    FILE = "latency.json"

    import_ms: Size
    load_ms: Size
    shapes: Mapping[str, ShapeMeasurement]
    facts: Mapping[str, Any]
    notes: tuple[str, ...]
    device: DeviceRecord
    outputs: Annotated[Mapping[str, OutputAccuracy], Field(min_length=1)]
