"""Timed runs in windows: from which window on the time is steady, and whether it stays so. Pure.

An engine gets faster while it warms up: caches fill, clocks rise, and TensorRT-RTX replaces general kernels with
specialized ones. That happens some hundred milliseconds to seconds after the first run at a shape, so the time drops by
a step. Waiting without timing would waste time. So every run is timed, and those before the last drop are left out
afterwards. A later slowdown is not a warm-up: it stays in the results.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import median

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
