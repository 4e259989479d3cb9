"""The state of the GPU: what is read, and what makes a figure doubtful."""

from __future__ import annotations

import os
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from engineworks.host.nvml import GpuWatch


class FakeNvml:
    """NVML of a host with one GPU."""

    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0
    nvmlClocksEventReasonSwPowerCap = 4
    nvmlClocksThrottleReasonHwSlowdown = 8

    class NVMLError(Exception):
        pass

    def __init__(self) -> None:
        self.clock, self.reasons, self.pids = 1980, 0, [os.getpid()]
        self.asked: object = None
        self.broken = ""

    def nvmlInit(self) -> None:
        if self.broken:
            raise self.NVMLError(self.broken)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str:
        self.asked = index
        return "gpu"

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        self.asked = uuid
        return "gpu"

    def nvmlDeviceGetClockInfo(self, device: str, kind: int) -> int:
        return self.clock if kind == self.NVML_CLOCK_SM else 2619

    def nvmlDeviceGetTemperature(self, device: str, sensor: int) -> int:
        return 36

    def nvmlDeviceGetPowerUsage(self, device: str) -> int:
        raise self.NVMLError("Not Supported")

    def nvmlDeviceGetUtilizationRates(self, device: str) -> Any:
        return SimpleNamespace(gpu=80)

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, device: str) -> int:
        return self.reasons

    def nvmlDeviceGetComputeRunningProcesses(self, device: str) -> list[Any]:
        return [SimpleNamespace(pid=pid) for pid in self.pids]


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
    fake = FakeNvml()
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return fake


def test_a_quiet_gpu_gives_no_complaint_and_what_it_does_not_tell_is_left_out(nvml: FakeNvml) -> None:
    watch = GpuWatch()
    reading = watch.sample()
    assert reading["sm_clock_mhz"] == 1980
    assert reading["temperature_c"] == 36
    assert reading["slowed_by"] == []
    assert "power_w" not in reading
    assert watch.complaints([reading, watch.sample(), watch.sample()]) == []


def test_what_slows_the_gpu_is_named(nvml: FakeNvml) -> None:
    watch = GpuWatch()
    before = watch.sample()
    nvml.reasons = 4 | 8 | 1  # 1: idle, which slows nothing
    assert watch.complaints([before, watch.sample()]) == [
        "the GPU was slowed by its power limit", "the GPU was slowed by a hardware slowdown",
    ]  # fmt: skip


def test_a_clock_that_moves_under_load_is_told_but_not_the_way_up_from_rest(nvml: FakeNvml) -> None:
    watch = GpuWatch()
    nvml.clock = 345
    rest = watch.sample()
    nvml.clock = 1980
    high = watch.sample()
    assert watch.complaints([rest, high, high]) == []
    nvml.clock = 1500
    assert watch.complaints([rest, high, watch.sample()]) == ["the GPU's clock was not stable: 1500 to 1980 MHz"]


def test_other_processes_are_named_and_our_own_children_are_not(nvml: FakeNvml) -> None:
    watch = GpuWatch()
    nvml.pids = [os.getpid(), 1]  # process 1 is of another group
    assert watch.complaints([watch.sample()]) == ["other processes computed on the GPU: 1"]
    with subprocess.Popen(["sleep", "60"]) as child:
        nvml.pids = [os.getpid(), child.pid]
        try:
            assert watch.complaints([watch.sample()]) == []
        finally:
            child.kill()


def test_in_a_container_one_unknown_process_is_taken_for_this_one(nvml: FakeNvml) -> None:
    watch = GpuWatch()
    nvml.pids = [4_000_001]
    assert watch.complaints([watch.sample()]) == []
    nvml.pids = [4_000_001, 4_000_002]
    assert watch.complaints([watch.sample()]) == ["other processes computed on the GPU: 4000002"]


@pytest.mark.parametrize(("visible", "asked"), [("2,0", 2), ("GPU-8932f937", "GPU-8932f937"), (None, 0)])
def test_the_first_visible_gpu_is_watched(
    nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch, visible: str | None, asked: object
) -> None:
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    GpuWatch()
    assert nvml.asked == asked


def test_a_gpu_that_can_not_be_read_is_not_trusted_blindly(nvml: FakeNvml) -> None:
    nvml.broken = "Driver/library version mismatch"
    watch = GpuWatch()
    assert watch.sample() == {}
    assert watch.complaints([{}, {}]) == ["the state of the GPU is unknown: NVML: Driver/library version mismatch"]
