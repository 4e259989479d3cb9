"""Latency of a session at one shape: warm up until stable, then sample until the median is known well enough."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from engineworks.measure.statistics import Interval, enough_for, quantile, quantile_interval

TimeRuns = Callable[[int], list[float]]
"""`runs` → the milliseconds of each."""


@dataclass(frozen=True)
class Sampling:
    """When to stop. precision: wanted half width of the median's 95 % interval, relative to the median."""

    warmup_s: float = 0.2
    least_runs: int = 50
    most_s: float = 1.0
    precision: float = 0.005
    tail: bool = False
    tail_most_s: float = 10.0


@dataclass(frozen=True)
class LatencyReport:
    """Milliseconds at one shape. `median_interval`: 95 %, None if there are too few samples. `notes`: what to know
    before a figure is trusted. `samples`: every timed run in order."""

    latency_ms_p50: float
    latency_ms_p90: float
    latency_ms_p99: float
    latency_ms_mean: float
    median_interval: Interval | None
    throughput_per_s: float
    runs: int
    warmup_runs: int
    notes: tuple[str, ...]
    samples: tuple[float, ...]

    def to_json(self) -> dict[str, Any]:
        value = dict(vars(self))
        interval = self.median_interval
        value["median_interval"] = [interval.low, interval.high] if interval else None
        value["samples"] = [round(s, 6) for s in self.samples]
        return value


def measure_latency(time_runs: TimeRuns, batch: int, sampling: Sampling) -> LatencyReport:
    """Time a session. `batch`: samples per run, for the throughput (batch / median)."""
    warmups, last = _warm_up(time_runs, sampling)
    samples = _sample(time_runs, sampling, last)
    ordered = sorted(samples)
    median = quantile(ordered, 0.5)
    interval = quantile_interval(ordered, 0.5)
    return LatencyReport(
        latency_ms_p50=median,
        latency_ms_p90=quantile(ordered, 0.9),
        latency_ms_p99=quantile(ordered, 0.99),
        latency_ms_mean=sum(samples) / len(samples),
        median_interval=interval,
        throughput_per_s=1000.0 * batch / median,
        runs=len(samples),
        warmup_runs=warmups,
        notes=tuple(_notes(len(samples), interval, median, sampling)),
        samples=tuple(samples),
    )


def _warm_up(time_runs: TimeRuns, sampling: Sampling) -> tuple[int, float]:
    """Run until the time is up and two halves of the latest runs agree within 5 %. Returns runs and a usual time."""
    begin, runs, recent = time.monotonic(), 0, [0.0]
    while True:
        recent = time_runs(4)
        runs += 4
        spent = time.monotonic() - begin
        settled = abs(sum(recent[:2]) - sum(recent[2:])) <= 0.05 * sum(recent)
        if (spent >= sampling.warmup_s and settled) or spent >= 5 * sampling.warmup_s:
            return runs, sorted(recent)[1]


def _sample(time_runs: TimeRuns, sampling: Sampling, usual_ms: float) -> list[float]:
    """Batches of runs until the interval is narrow enough (and the tail is known, if asked) or the time is up."""
    begin, samples = time.monotonic(), list[float]()
    most_s = sampling.tail_most_s if sampling.tail else sampling.most_s
    least = max(sampling.least_runs, enough_for(0.99) if sampling.tail else 0)
    chunk = max(1, min(sampling.least_runs, int(100.0 / max(usual_ms, 0.001))))
    while True:
        samples += time_runs(chunk)
        spent = time.monotonic() - begin
        if spent >= most_s and len(samples) >= min(sampling.least_runs, 5):
            return samples
        if len(samples) >= least and _known(samples, sampling.precision):
            return samples


def _known(samples: list[float], precision: float) -> bool:
    ordered = sorted(samples)
    interval = quantile_interval(ordered, 0.5)
    return interval is not None and interval.half_width <= precision * quantile(ordered, 0.5)


def _notes(runs: int, interval: Interval | None, median: float, sampling: Sampling) -> list[str]:
    notes = []
    if interval is None:
        notes.append(f"{runs} runs are too few for an interval of the median")
    elif interval.half_width > sampling.precision * median:
        notes.append(f"median known to ± {100 * interval.half_width / median:.1f} % only")
    need = enough_for(0.99)
    if runs < need:
        notes.append(f"p99 is uncertain: {runs} runs, its 95 % interval needs {need}")
    return notes
