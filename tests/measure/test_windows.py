"""From which window on the time is steady: drops are warm-up, rises and noise are not."""

from __future__ import annotations

import pytest

from engineworks.measure.latency import Window, first_steady, is_settled, steady_from


@pytest.mark.parametrize(
    ("medians", "first"),
    [
        ([1.0, 1.0, 1.0], 0),
        ([9.0, 2.0, 1.0, 1.0, 1.0], 2),
        ([1.02, 1.0, 1.0, 1.0], 0),
        ([1.0, 1.0, 1.0, 2.0], 0),
        ([1.0, 1.0, 2.0, 2.0, 2.0, 2.0], 0),
        ([2.0, 1.0, 3.0, 1.0, 1.0], 1),
        ([5.0], 0),
    ],
    ids=["steady", "a fall", "within the tolerance", "one slow end", "a rise is no warm-up", "noise later", "one"],
)
def test_windows_before_the_last_fall_are_warm_up(medians: list[float], first: int) -> None:
    assert steady_from(medians) == first


def window(host: float, device: float | None = None) -> Window:
    return Window((host,) * 3, () if device is None else (device,) * 3, 0.05)


def test_a_fall_by_the_device_s_clock_counts_though_the_host_hides_it() -> None:
    windows = [window(1.0, 0.9), window(1.0, 0.9), window(1.0, 0.3), window(1.0, 0.3), window(1.0, 0.3)]
    assert first_steady(windows) == 2
    assert not is_settled(windows[1:])
    assert is_settled(windows[2:])


def test_a_step_at_the_very_end_is_not_settled() -> None:
    assert is_settled([window(1.0)] * 8)
    assert not is_settled([window(1.0)] * 8 + [window(0.5)])
    assert not is_settled([window(1.0)])
    assert not is_settled([window(1.0), window(1.0), window(1.2), window(1.2)])
