"""The state of the GPU by NVML: what makes a figure taken on it worth nothing.

Fields and their units: NVML API reference (nvidia-ml-py carries the same names): clocks in MHz, temperature in °C,
power in mW, throttle ("clocks event") reasons as a mask of bits.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

SLOWED_BY: Mapping[str, str] = {
    "nvmlClocksEventReasonSwPowerCap": "its power limit",
    "nvmlClocksEventReasonSwThermalSlowdown": "its temperature",
    "nvmlClocksThrottleReasonHwSlowdown": "a hardware slowdown",
    "nvmlClocksThrottleReasonHwThermalSlowdown": "its temperature (hardware)",
    "nvmlClocksThrottleReasonHwPowerBrakeSlowdown": "an external power brake",
}
"""Reasons that slow the GPU below what it would do otherwise, by NVML's constant. Idle, application clocks, sync boost
and display settings are not among them: they are how the GPU is meant to run."""

CLOCK_SPREAD = 0.10
"""Largest difference of the GPU's clock between readings under load, relative to the highest, that is called stable."""


class GpuWatch:
    """Satisfies `base.DeviceWatch` for the first visible GPU. Where NVML cannot be read, readings are empty, and the
    complaint says so: a figure whose circumstances are unknown is not trusted blindly."""

    def __init__(self) -> None:
        self._nvml, self._device, self._why = _open()

    def sample(self) -> dict[str, object]:
        """Clocks in MHz, temperature in °C, power in W, what slows it, process ids of others that compute on it."""
        if self._nvml is None:
            return {}
        nvml, device = self._nvml, self._device
        reading: dict[str, object] = {"monotonic_s": round(time.monotonic(), 3)}
        with _unsupported_is_left_out(nvml):
            reading["sm_clock_mhz"] = nvml.nvmlDeviceGetClockInfo(device, nvml.NVML_CLOCK_SM)
            reading["memory_clock_mhz"] = nvml.nvmlDeviceGetClockInfo(device, nvml.NVML_CLOCK_MEM)
        with _unsupported_is_left_out(nvml):
            reading["temperature_c"] = nvml.nvmlDeviceGetTemperature(device, nvml.NVML_TEMPERATURE_GPU)
        with _unsupported_is_left_out(nvml):
            reading["power_w"] = nvml.nvmlDeviceGetPowerUsage(device) / 1000
        with _unsupported_is_left_out(nvml):
            reading["busy_percent"] = nvml.nvmlDeviceGetUtilizationRates(device).gpu
        with _unsupported_is_left_out(nvml):
            mask = nvml.nvmlDeviceGetCurrentClocksThrottleReasons(device)
            reading["slowed_by"] = [text for name, text in SLOWED_BY.items() if mask & getattr(nvml, name, 0)]
        with _unsupported_is_left_out(nvml):
            running = nvml.nvmlDeviceGetComputeRunningProcesses(device)
            reading["foreign_processes"] = _foreign([p.pid for p in running])
        return reading

    def complaints(self, readings: Sequence[Mapping[str, object]]) -> list[str]:
        """The first reading is taken at rest: its clock does not count."""
        if self._nvml is None:
            return [f"the state of the GPU is unknown: {self._why}"]
        slowed = _union(readings, "slowed_by")
        foreign = _union(readings, "foreign_processes")
        complaints = [f"the GPU was slowed by {reason}" for reason in slowed]
        if foreign:
            complaints.append(f"other processes computed on the GPU: {', '.join(map(str, foreign))}")
        clocks = [clock for r in readings[1:] if isinstance(clock := r.get("sm_clock_mhz"), int)]
        if clocks and max(clocks) - min(clocks) > CLOCK_SPREAD * max(clocks):
            complaints.append(f"the GPU's clock was not stable: {min(clocks)} to {max(clocks)} MHz")
        return complaints


def _open() -> tuple[Any, Any, str]:
    """NVML, the handle of the first visible GPU, and why there is none."""
    try:
        import pynvml
    except ImportError:
        return None, None, "nvidia-ml-py is not installed"
    try:
        pynvml.nvmlInit()
        return pynvml, _handle(pynvml, os.environ.get("CUDA_VISIBLE_DEVICES", "")), ""
    except pynvml.NVMLError as error:
        return None, None, f"NVML: {error}"


def _handle(nvml: Any, visible: str) -> Any:
    """NVML counts all GPUs of the host, whatever CUDA_VISIBLE_DEVICES says: a number or a UUID."""
    first = visible.split(",")[0].strip()
    if first and not first.isdigit():
        return nvml.nvmlDeviceGetHandleByUUID(first)
    return nvml.nvmlDeviceGetHandleByIndex(int(first or 0))


def _foreign(pids: Sequence[int]) -> list[int]:
    """Those of the processes on the GPU that are none of ours: not of our process group, where our other children are.

    In a container NVML may tell the host's numbers, where this process has another one: then one of them, whichever,
    is this one.
    """
    if os.getpid() not in pids:
        pids = pids[1:]
    return sorted(pid for pid in pids if not _of_our_group(pid))


def _of_our_group(pid: int) -> bool:
    try:
        return os.getpgid(pid) == os.getpgrp()
    except (ProcessLookupError, PermissionError):
        return False


@contextmanager
def _unsupported_is_left_out(nvml: Any) -> Iterator[None]:
    """Virtual machines and small GPUs do not tell everything."""
    with suppress(nvml.NVMLError):
        yield


def _union(readings: Iterable[Mapping[str, object]], key: str) -> list[Any]:
    union: dict[Any, None] = {}
    for reading in readings:
        values = reading.get(key)
        union |= dict.fromkeys(values if isinstance(values, list) else [])
    return list(union)
