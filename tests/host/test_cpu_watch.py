"""What a reading of the processor's load says, and which readings make figures doubtful."""

from __future__ import annotations

from typing import Any

import pytest

from engineworks.engines.backends import onnxruntime
from engineworks.host.cpu_watch import LoadWatch, busy_and_stolen, throttled_s

STAT = """\
cpu  300 0 30 1000 0 0 0 9 0 0
cpu0 100 10 20 500 7 2 3 4 50 0
cpu1 200 0 10 500 0 0 0 5 0 0
intr 1 2 3
"""

BEFORE: dict[str, Any] = {
    "monotonic_s": 100.0, "own_s": 5.0, "waited_s": 1.0, "processors": 2, "busy_s": 50.0, "stolen_s": 0.0,
    "throttled_s": 0.0, "overheated": 3, "mhz": 3000.0,
}  # fmt: skip
QUIET = BEFORE | {"monotonic_s": 101.0, "own_s": 6.0, "busy_s": 51.05, "waited_s": 1.01}


def test_only_the_processors_that_we_may_use_are_counted() -> None:
    assert busy_and_stolen(STAT, {0}) == (1.35, 0.04)
    assert busy_and_stolen(STAT, {0, 1}) == (3.45, 0.09)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("nr_periods 5\nnr_throttled 2\nthrottled_usec 1500000\n", 1.5),
        ("nr_periods 5\nnr_throttled 2\nthrottled_time 2500000000\n", 2.5),
        ("", 0.0),
    ],
)
def test_throttling_is_read_of_both_kinds_of_cgroups(text: str, seconds: float) -> None:
    assert throttled_s(text) == seconds


def test_a_quiet_processor_is_no_reason_for_doubt() -> None:
    assert LoadWatch().complaints([BEFORE, QUIET]) == []


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"waited_s": 1.2}, "this process waited for it 17% of its time"),
        ({"busy_s": 51.6}, "other processes used 30% of the processors meanwhile"),
        ({"stolen_s": 0.2}, "the hypervisor gave 10% of the processors to other machines"),
        ({"throttled_s": 0.05}, "the container's quota stopped this process for 50 ms"),
        ({"overheated": 4}, "the processor was slowed for its temperature"),
        ({"mhz": 2500.0}, "the processor's clock moved between 2500 and 3000 MHz"),
    ],
)
def test_each_disturbance_is_named(changes: dict[str, Any], sentence: str) -> None:
    found = LoadWatch().complaints([BEFORE, QUIET | changes])
    assert len(found) == 1
    assert sentence in found[0]


def test_short_stretches_allow_for_the_grain_of_the_ticks() -> None:
    short = BEFORE | {"monotonic_s": 100.05, "own_s": 5.05, "busy_s": 50.09}
    assert LoadWatch().complaints([BEFORE, short]) == []


@pytest.mark.parametrize(
    ("wall_s", "own_s", "waited_s"), [(0.0094, 0.0174, 0.0054), (0.0095, 0.0214, 0.0075), (0.264, 0.5108, 0.031)]
)
def test_threads_that_wait_for_each_other_are_no_disturbance(wall_s: float, own_s: float, waited_s: float) -> None:
    """Read on a quiet host: an engine's threads on two processors, of which they had nearly everything."""
    own = BEFORE | {"monotonic_s": 100 + wall_s, "own_s": 5 + own_s, "busy_s": 50 + own_s, "waited_s": 1 + waited_s}
    assert LoadWatch().complaints([BEFORE, own]) == []


def test_a_short_load_next_to_another_process_is_disturbed() -> None:
    """The other had one of the two processors; two threads waited for each other too."""
    halved = BEFORE | {"monotonic_s": 100.017, "own_s": 5.017, "busy_s": 50.034, "waited_s": 1.02}
    (complaint,) = LoadWatch().complaints([BEFORE, halved])
    assert "this process waited for it 47% of its time" in complaint


def test_nothing_is_said_of_readings_that_hold_nothing() -> None:
    assert LoadWatch().complaints([]) == []
    assert LoadWatch().complaints([{}, {}]) == []
    assert LoadWatch().complaints([BEFORE]) == []


def test_this_host_is_read() -> None:
    watch = onnxruntime.device_watch()
    first = watch.sample()
    sum(i * i for i in range(100_000))
    second = watch.sample()
    assert float(str(second["own_s"])) > float(str(first["own_s"]))
    assert isinstance(watch.complaints([first, second]), list)
