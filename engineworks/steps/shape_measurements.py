"""All metrics of a loaded engine at one shape: first run, latency, the device's time, copies, streams, and the cost."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from engineworks.engines.backends.base import RunTimes, Session
from engineworks.errors import RunError
from engineworks.host.lazy import Array
from engineworks.measure.latency import BRIEF, AtWork, Sampling, measure_latency, percentiles, rounded, sample_runs

LOOK_EVERY_S = 0.2
"""Minimum seconds between two samples of the device; one of a GPU takes a few milliseconds."""

STREAMS_S = 0.5
"""Seconds of runs in flight for each number of streams."""


def measure_shape(
    session: Session,
    feeds: Mapping[str, Array],
    batch: int,
    *,
    sampling: Sampling,
    streams: Sequence[int],
    look: Callable[[float], None],
    peak_mib: Callable[[], float],
    at_work: AtWork,
) -> dict[str, Any]:
    """Measure one shape and return JSON values. Raises `RunError`, but not if only several streams cannot run.

    feeds: one run's inputs by name, with the shapes and dtypes of the engine's inputs. batch: samples per run. look:
    samples the device before the first run, between windows of runs and after the last; takes the minimum seconds
    between two samples. at_work: as in `sample_runs`.

    first_run_ms: the first run at this shape with all its setup, and copies. latency_ms_*, samples: by the host's
    clock, with inputs and outputs where the engine wants them. device_ms_*, device_samples: the same runs by the
    device's clock. copies_ms_*, copies_device_ms_*: runs with copies to the device and back; None where none are
    needed. streams: runs and samples per second with several in flight. peak_mib: memory in use before those. seconds:
    the whole measurement. cost_ratio: seconds / measured time, which is the first run, the samples with and without
    copies, and the runs in streams. Warm-up, setup and sampling the device are the rest.
    """
    begin = time.monotonic()
    look(0.0)
    timed = _Timed(session, feeds, look)
    first_run_ms = timed.first_run_ms()
    report = measure_latency(timed.without_copies, batch, sampling, at_work)
    copies = {} if timed.on_host else timed.with_copies(report)
    peak = peak_mib()
    look(0.0)
    notes = list(report.notes)
    in_flight = _streams(session, feeds, batch, streams, notes)
    seconds = time.monotonic() - begin
    used_s = (first_run_ms + report.runs * report.latency_ms_mean + sum(copies.get("copies_samples", ()))) / 1000
    used_s += sum(stream["seconds"] for stream in in_flight)
    return {
        **vars(report),
        **NO_COPIES,
        **copies,
        "first_run_ms": first_run_ms,
        "streams": in_flight,
        "peak_mib": peak,
        "notes": notes,
        "seconds": round(seconds, 3),
        "cost_ratio": round(seconds / used_s, 3) if used_s > 0 else None,
    }


NO_COPIES = {
    **percentiles("copies_ms", ()), **percentiles("copies_device_ms", ()),
    "copies_samples": (), "copies_device_samples": (),
}  # fmt: skip


class _Timed:
    """Runs of one session on the same feeds. on_host: whether there is nothing to copy, known after the first."""

    def __init__(self, session: Session, feeds: Mapping[str, Array], look: Callable[[float], None]) -> None:
        self._session, self._feeds, self._look = session, feeds, look
        self.on_host = False

    def first_run_ms(self) -> float:
        start = time.perf_counter()
        self._session.run(self._feeds)
        return 1000 * (time.perf_counter() - start)

    def without_copies(self, runs: int) -> RunTimes:
        self._look(LOOK_EVERY_S)
        times = self._session.time_runs(self._feeds, runs)
        self.on_host = times.on_host
        return times

    def with_copies(self, report: Any) -> dict[str, Any]:
        sampled = sample_runs(self._copied, replace(BRIEF, least_runs=min(BRIEF.least_runs, report.runs)))
        return {
            **percentiles("copies_ms", sampled.host_ms),
            **percentiles("copies_device_ms", sampled.device_ms),
            "copies_samples": rounded(sampled.host_ms),
            "copies_device_samples": rounded(sampled.device_ms),
        }

    def _copied(self, runs: int) -> RunTimes:
        self._look(LOOK_EVERY_S)
        return self._session.time_runs(self._feeds, runs, copies=True)


def _streams(
    session: Session, feeds: Mapping[str, Array], batch: int, streams: Sequence[int], notes: list[str]
) -> list[dict[str, Any]]:
    """Return one entry per number of streams; one that cannot run becomes a note."""
    entries = []
    for count in streams:
        begin = time.monotonic()
        try:
            runs_per_s = session.throughput(feeds, count, STREAMS_S)
        except RunError as error:
            notes.append(f"{count} streams: {error.message}")
            continue
        seconds = round(time.monotonic() - begin, 3)
        entries.append(
            {"streams": count, "runs_per_s": runs_per_s, "samples_per_s": runs_per_s * batch, "seconds": seconds}
        )  # fmt: skip
    return entries
