"""Latency of a session at one shape: run until its time is steady and its median is precise enough.

An engine gets faster while it warms up: caches fill, clocks rise, and TensorRT-RTX replaces general kernels with
specialized ones. That happens some hundred milliseconds to seconds after the first run at a shape, so the time drops by
a step. Waiting without timing would waste time. So every run is timed, and those before the last drop are left out
afterwards. A later slowdown is not a warm-up: it stays in the results.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import median
from typing import Any, Protocol

from engineworks.measure.latency_report import TimedRuns
from engineworks.measure.statistics import TAILS, Interval, enough_for, quantile, quantile_interval


class Times(Protocol):
    """Milliseconds of each run by the host's clock and by the device's; the latter is empty without a device clock."""

    @property
    def host_ms(self) -> Sequence[float]: ...

    @property
    def device_ms(self) -> Sequence[float]: ...


TimeRuns = Callable[[int], Times]
"""Number of runs → the time of each."""

AtWork = Callable[[], bool]
"""Whether this process did other work since the last call: compiling specialized kernels."""

WINDOW_MS = 50.0
"""Length of a window: short compared with the arrival of specialized kernels, long compared with a run."""

LONGEST_WINDOW_MS = 300.0

SAMPLES_PER_WARM_UP = 2.5
"""Sampling lasts at least this many times the warm-up, so that the warm-up stays below a third of the total."""


@dataclass(frozen=True)
class Sampling:
    """When to stop.

    watch_s: minimum time from the first run in which the time may still drop. max_s: maximum time of steady runs; a
    warm-up may take twice as long. precision: wanted half width of the median's 95% interval, relative to the median.
    tail: whether p99 must be known, which takes more runs.
    """

    watch_s: float = 0.25
    least_runs: int = 50
    max_s: float = 1.0
    precision: float = 0.005
    tail: bool = False
    tail_max_s: float = 10.0


LAZY_KERNELS = Sampling(watch_s=6.0, max_s=12.0)
"""For backends that compile specialized kernels while general ones run, and swap them in later.

On 16 cores next to an H100, BERT-base in fp8 ran for two to four seconds at 5.4 ms before it reached 0.72 ms.
"""

RUNS_FOR_TAIL = enough_for(max(TAILS.values()))

QUIET_S = 0.5
"""Time after which the results of an idle compiler are in use."""

BRIEF = Sampling(watch_s=0.1, max_s=0.5, precision=0.01)
"""For a second measurement at a shape that is already warm."""


@dataclass(frozen=True)
class Sampled:
    """Timed runs in order, without the warm-up. settled: whether their time was steady to the end."""

    host_ms: tuple[float, ...]
    device_ms: tuple[float, ...]
    warmup_runs: int
    warmup_s: float
    settled: bool


def never() -> bool:
    """For an engine that does not get faster while it runs."""
    return False


def measure_latency(time_runs: TimeRuns, batch: int, sampling: Sampling, at_work: AtWork = never) -> TimedRuns:
    """Time a session. batch: samples per run, for the throughput (batch / median). at_work: as in `sample_runs`."""
    sampled = sample_runs(time_runs, sampling, at_work)
    samples = sampled.host_ms
    ordered = sorted(samples)
    middle = quantile(ordered, 0.5)
    interval = quantile_interval(ordered, 0.5)
    return TimedRuns(
        latency_ms_mean=sum(samples) / len(samples),
        median_interval=interval,
        throughput_per_s=1000.0 * batch / middle,
        runs=len(samples),
        warmup_runs=sampled.warmup_runs,
        warmup_s=round(sampled.warmup_s, 6),
        settled=sampled.settled,
        notes=tuple(_notes(sampled, interval, middle, sampling)),
        samples=rounded(samples),
        device_samples=rounded(sampled.device_ms),
        **percentiles("latency_ms", samples),
        **percentiles("device_ms", sampled.device_ms),
    )


def percentiles(name: str, samples: Sequence[float]) -> dict[str, Any]:
    """{NAME_p50, NAME_p90, NAME_p99}, in ms; None without samples."""
    ordered = sorted(samples)
    return {f"{name}_p{q}": quantile(ordered, q / 100) if ordered else None for q in (50, 90, 99)}


def rounded(samples: Sequence[float]) -> tuple[float, ...]:
    """Six digits after the point: a nanosecond."""
    return tuple(round(s, 6) for s in samples)


def sample_runs(time_runs: TimeRuns, sampling: Sampling, at_work: AtWork = never) -> Sampled:
    """Time windows of runs until the time has settled and the median is precise enough, or the time is up.

    at_work: called after every window. Until it has returned False for `QUIET_S`, the time may still drop, however
    steady it looks. Sampling then continues for as long as a warm-up may take.
    """
    windows = [_timed(time_runs, _LEAST_RUNS_PER_WINDOW)]
    worked_until_s = 0.0
    while True:
        windows.append(_timed(time_runs, _runs_per_window(windows[-1])))
        total_s = sum(w.seconds for w in windows)
        if at_work():
            worked_until_s = total_s
        if worked_until_s and total_s < min(worked_until_s + QUIET_S, 3 * sampling.max_s):
            continue
        steady = first_steady(windows)
        settled = is_settled(windows[steady:])
        if _enough(windows[:steady], windows[steady:], settled, sampling):
            return _sampled(windows, steady, settled)


def _timed(time_runs: TimeRuns, runs: int) -> Window:
    begin = time.monotonic()
    times = time_runs(runs)
    return Window(tuple(times.host_ms), tuple(times.device_ms), time.monotonic() - begin)


_LEAST_RUNS_PER_WINDOW = 3
"""For engines that take seconds per run. A session may add one untimed run per call."""


def _runs_per_window(last: Window) -> int:
    """Enough runs to fill a window; a longer one if setting up a call would cost more than a tenth of it."""
    usual_ms = last.medians_ms[0]
    set_up_ms = 1000 * last.seconds - sum(last.host_ms)
    window_ms = min(max(WINDOW_MS, 10 * set_up_ms), LONGEST_WINDOW_MS)
    least = 10 if usual_ms < WINDOW_MS else 5 if usual_ms < 1000 else _LEAST_RUNS_PER_WINDOW
    return max(least, min(1000, int(window_ms / max(usual_ms, 0.001))))


def _enough(warmup: Sequence[Window], steady: Sequence[Window], settled: bool, sampling: Sampling) -> bool:
    """Whether to stop: the median is precise enough, or the time is up (and at least five runs are kept)."""
    warmup_s, steady_s = sum(w.seconds for w in warmup), sum(w.seconds for w in steady)
    runs = sum(len(w.host_ms) for w in steady)
    max_s = max(sampling.max_s, sampling.tail_max_s) if sampling.tail else sampling.max_s
    if runs >= 5 and (steady_s >= max_s or warmup_s + steady_s >= 3 * max_s):
        return True
    least = max(sampling.least_runs, RUNS_FOR_TAIL if sampling.tail else 0)
    if not settled or runs < least:
        return False
    long_enough = warmup_s + steady_s >= sampling.watch_s and steady_s >= SAMPLES_PER_WARM_UP * warmup_s
    return long_enough and _known([t for w in steady for t in w.host_ms], sampling.precision)


def _known(samples: list[float], precision: float) -> bool:
    ordered = sorted(samples)
    interval = quantile_interval(ordered, 0.5)
    return interval is not None and interval.half_width <= precision * quantile(ordered, 0.5)


def _sampled(windows: Sequence[Window], steady: int, settled: bool) -> Sampled:
    kept = without_slow_start(windows[steady:])
    return Sampled(
        host_ms=tuple(t for w in kept for t in w.host_ms),
        device_ms=tuple(t for w in kept for t in w.device_ms),
        warmup_runs=sum(len(w.host_ms) for w in windows) - sum(len(w.host_ms) for w in kept),
        warmup_s=sum(w.seconds for w in windows) - sum(w.seconds for w in kept),
        settled=settled,
    )


def _notes(sampled: Sampled, interval: Interval | None, middle: float, sampling: Sampling) -> list[str]:
    notes, runs = [], len(sampled.host_ms)
    if interval is None:
        notes.append(f"{runs} runs are too few for an interval of the median")
    elif interval.half_width > sampling.precision * middle:
        notes.append(f"median known to ± {100 * interval.half_width / middle:.1f}% only")
    if not sampled.settled:
        notes.append(f"the latency never settled: {_halves(sampled.host_ms)}")
    if runs < RUNS_FOR_TAIL:
        notes.append(f"p99 is uncertain: {runs} runs, its 95% interval needs {RUNS_FOR_TAIL}")
    return notes


def _halves(samples: Sequence[float]) -> str:
    half = len(samples) // 2
    first, second, end = median(samples[:half]), median(samples[half:]), median(samples[-max(1, half // 5) :])
    return (
        f"median {first:.4g} ms over the first half of the runs, {second:.4g} ms over the second, {end:.4g} ms at last"
    )


TOLERANCE = 0.03
"""Medians that differ by less count as equal."""


@dataclass(frozen=True)
class Window:
    """Consecutive runs of one call.

    host_ms, device_ms: of each run; device_ms is empty without a device clock. seconds: duration of the whole call.
    """

    host_ms: tuple[float, ...]
    device_ms: tuple[float, ...]
    seconds: float

    @cached_property
    def medians_ms(self) -> tuple[float, ...]:
        """By the host's clock, then by the device's if there is one."""
        return tuple(median(times) for times in (self.host_ms, self.device_ms) if times)


def steady_from(medians: Sequence[float], tolerance: float = TOLERANCE) -> int:
    """Index of the first window that is as fast as the later half of them (its median, within the tolerance)."""
    level = median(medians[len(medians) // 2 :])
    return next(i for i, value in enumerate(medians) if value <= level * (1 + tolerance))


def first_steady(windows: Sequence[Window]) -> int:
    """Index of the first window that is steady by the host's clock and by the device's, if there is one."""
    return max(steady_from(medians) for medians in _by_clock(windows))


def without_slow_start(windows: Sequence[Window]) -> list[Window]:
    """The windows without slow leading runs of the first one: if the time fell within it, the runs before the fall."""
    first, *rest = windows
    levels = [median(medians) for medians in _by_clock(windows)]
    skip = max(_slow_start(runs, level) for runs, level in zip((first.host_ms, first.device_ms), levels, strict=False))
    share = 1 - skip / len(first.host_ms)
    return [Window(first.host_ms[skip:], first.device_ms[skip:], share * first.seconds), *rest]


def is_settled(windows: Sequence[Window]) -> bool:
    """Whether the halves of these windows agree, and the last one is not a step below them, by every clock.

    False for a single window, which shows nothing.
    """
    return len(windows) > 1 and all(_agree(medians) for medians in _by_clock(windows))


def _by_clock(windows: Sequence[Window]) -> list[tuple[float, ...]]:
    """The windows' medians, one list per clock."""
    return list(zip(*(w.medians_ms for w in windows), strict=True))


def _slow_start(runs: Sequence[float], level: float) -> int:
    return next((i for i, value in enumerate(runs) if value <= level * (1 + TOLERANCE)), 0)


def _agree(medians: Sequence[float]) -> bool:
    middle = len(medians) // 2
    early, late = median(medians[:middle]), median(medians[middle:])
    return abs(early - late) <= TOLERANCE * late and medians[-1] >= (1 - TOLERANCE) * late
