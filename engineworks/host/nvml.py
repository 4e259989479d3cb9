"""The state of the GPU by NVML, which can invalidate a measurement.

Units from the NVML API reference (nvidia-ml-py has the same names): clocks in MHz, temperature in °C, power in mW,
throttle ("clocks event") reasons as a bit mask.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

SLOWED_BY: Mapping[str, str] = {
    "nvmlClocksEventReasonSwPowerCap": "its power limit",
    "nvmlClocksEventReasonSwThermalSlowdown": "its temperature",
    "nvmlClocksThrottleReasonHwSlowdown": "a hardware slowdown",
    "nvmlClocksThrottleReasonHwThermalSlowdown": "its temperature (hardware)",
    "nvmlClocksThrottleReasonHwPowerBrakeSlowdown": "an external power brake",
}
"""Reasons that slow the GPU, by NVML's constant. Idle, application clocks, sync boost and display settings are left
out: they are its normal operation."""

CLOCK_SPREAD = 0.10
"""Maximum difference between stable clock readings under load, relative to the highest."""


class GpuWatch:
    """Satisfies `base.DeviceWatch` for the first visible GPU. Where NVML cannot be read, readings are empty and a
    complaint says so, because such measurements cannot be trusted."""

    def __init__(self) -> None:
        self._nvml, self._device, self._why = _open()

    def sample(self) -> dict[str, object]:
        """Return clocks in MHz, temperature in °C, power in W, throttle reasons, and ids of other processes that
        compute on the GPU."""
        if self._nvml is None:
            return {}
        nvml, device = self._nvml, self._device
        unsupported = nvml.NVMLError  # virtual machines and small GPUs lack some readings
        reading: dict[str, object] = {"monotonic_s": round(time.monotonic(), 3)}
        with suppress(unsupported):
            reading["sm_clock_mhz"] = nvml.nvmlDeviceGetClockInfo(device, nvml.NVML_CLOCK_SM)
            reading["memory_clock_mhz"] = nvml.nvmlDeviceGetClockInfo(device, nvml.NVML_CLOCK_MEM)
        with suppress(unsupported):
            reading["temperature_c"] = nvml.nvmlDeviceGetTemperature(device, nvml.NVML_TEMPERATURE_GPU)
        with suppress(unsupported):
            reading["power_w"] = nvml.nvmlDeviceGetPowerUsage(device) / 1000
        with suppress(unsupported):
            reading["busy_percent"] = nvml.nvmlDeviceGetUtilizationRates(device).gpu
        with suppress(unsupported):
            mask = nvml.nvmlDeviceGetCurrentClocksThrottleReasons(device)
            reading["slowed_by"] = [text for name, text in SLOWED_BY.items() if mask & getattr(nvml, name, 0)]
        with suppress(unsupported):
            running = nvml.nvmlDeviceGetComputeRunningProcesses(device)
            reading["foreign_processes"] = _foreign([p.pid for p in running])
        return reading

    def complaints(self, readings: Sequence[Mapping[str, object]]) -> list[str]:
        """Ignore the clock of the first reading, which is taken at rest."""
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
    """Return NVML, the handle of the first visible GPU, and the reason if there is none."""
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
    """Return the handle. NVML counts all GPUs of the host, but CUDA_VISIBLE_DEVICES may hold a number or a UUID."""
    first = visible.split(",")[0].strip()
    if first and not first.isdigit():
        return nvml.nvmlDeviceGetHandleByUUID(first)
    return nvml.nvmlDeviceGetHandleByIndex(int(first or 0))


def _foreign(pids: Sequence[int]) -> list[int]:
    """Return the GPU's processes outside of our process group, which holds our other children.

    In a container NVML may report the host's process ids: if ours is missing, drop one of them, as this process.
    """
    if os.getpid() not in pids:
        pids = pids[1:]
    return sorted(pid for pid in pids if not _of_our_group(pid))


def _of_our_group(pid: int) -> bool:
    try:
        return os.getpgid(pid) == os.getpgrp()
    except (ProcessLookupError, PermissionError):
        return False


def _union(readings: Iterable[Mapping[str, object]], key: str) -> list[Any]:
    union: dict[Any, None] = {}
    for reading in readings:
        values = reading.get(key)
        union |= dict.fromkeys(values if isinstance(values, list) else [])
    return list(union)


def used_mib() -> float | None:
    """Return the memory in use on the first visible GPU in MiB, by all processes; None where NVML cannot tell."""
    nvml, device, _ = _open()
    used: float | None = None
    if nvml is not None:
        with suppress(nvml.NVMLError):
            used = float(nvml.nvmlDeviceGetMemoryInfo(device).used) / 2**20
    return used
