"""Timed runs in windows: from which window on the time is steady, and whether it stays so. Pure.

An engine gets faster while it warms up: caches fill, clocks rise, and TensorRT-RTX swaps specialized kernels in for
general ones, some hundred milliseconds to seconds after the first run at a shape, so that the time drops by a step.
Waiting for that without timing would be lost time; so every run is timed, and those before the last drop are left out
afterwards. What gets slower later is no warm-up: it stays in the figures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

TOLERANCE = 0.03
"""Medians that differ by less count as equal."""


@dataclass(frozen=True)
class Window:
    """Consecutive runs of one call. host_ms, device_ms: of each run; device_ms is empty where there is no such clock.
    seconds: what the call took in all."""

    host_ms: tuple[float, ...]
    device_ms: tuple[float, ...]
    seconds: float


def steady_from(medians: Sequence[float], tolerance: float = TOLERANCE) -> int:
    """Index of the first window that is as fast as the later half of them (its median, within the tolerance)."""
    level = median(medians[len(medians) // 2 :])
    return next(i for i, value in enumerate(medians) if value <= level * (1 + tolerance))


def first_steady(windows: Sequence[Window]) -> int:
    """Index of the first window that is steady by the host's clock and by the device's, where there is one."""
    host = steady_from([median(w.host_ms) for w in windows])
    if not all(w.device_ms for w in windows):
        return host
    return max(host, steady_from([median(w.device_ms) for w in windows]))


def without_slow_start(windows: Sequence[Window]) -> list[Window]:
    """The windows without the leading runs of the first that are slower than all of them together: where the time fell
    within that window, those before the fall."""
    first, *rest = windows
    skip = _slow_start(first.host_ms, median([t for w in windows for t in w.host_ms]))
    if all(w.device_ms for w in windows):
        skip = max(skip, _slow_start(first.device_ms, median([t for w in windows for t in w.device_ms])))
    share = 1 - skip / len(first.host_ms)
    return [Window(first.host_ms[skip:], first.device_ms[skip:], share * first.seconds), *rest]


def _slow_start(runs: Sequence[float], level: float) -> int:
    return next((i for i, value in enumerate(runs) if value <= level * (1 + TOLERANCE)), 0)


def is_settled(windows: Sequence[Window]) -> bool:
    """Whether the halves of these windows agree, and the last one is not a step below them, by every clock.

    One window tells nothing of that: False.
    """
    clocks = [[w.host_ms for w in windows]]
    if all(w.device_ms for w in windows):
        clocks.append([w.device_ms for w in windows])
    return len(windows) > 1 and all(_agree(runs) for runs in clocks)


def _agree(windows: Sequence[Sequence[float]]) -> bool:
    middle = len(windows) // 2
    early, late = (median([t for w in part for t in w]) for part in (windows[:middle], windows[middle:]))
    return abs(early - late) <= TOLERANCE * late and median(windows[-1]) >= (1 - TOLERANCE) * late
