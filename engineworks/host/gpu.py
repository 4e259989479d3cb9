"""The GPU that a process started here would use, from the driver's own tool; loads no CUDA library."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from dataclasses import dataclass
from functools import cache

NVIDIA_SMI_S = 20.0
"""Time limit for nvidia-smi in seconds; many GPUs without a persistence daemon take several."""


@dataclass(frozen=True)
class Gpu:
    """compute_capability, cuda: '' where the driver is too old to report them. memory_mib: total in MiB, None where
    unknown."""

    name: str
    compute_capability: str
    driver: str
    cuda: str
    memory_mib: int | None = None

    def to_json(self) -> dict[str, str]:
        """Return the part of a measurement's key."""
        return {
            "gpu": self.name,
            "compute_capability": self.compute_capability,
            "driver": self.driver,
            "cuda": self.cuda,
        }


def first_gpu() -> Gpu | None:
    """Return the first GPU that CUDA_VISIBLE_DEVICES leaves visible, None where there is none."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and not visible.strip():
        return None
    tool = _found("nvidia-smi", os.environ.get("PATH", ""))
    return _ask(tool, (visible or "0").split(",")[0].strip()) if tool else None


def describe() -> dict[str, str]:
    """Return the first GPU as part of a measurement's key, {} where there is none."""
    gpu = first_gpu()
    return gpu.to_json() if gpu else {}


@cache
def _found(tool: str, path: str) -> str | None:
    """Return the tool's path, cached because every engine of a plan asks for it."""
    return shutil.which(tool, path=path)


@cache
def _ask(tool: str, device: str) -> Gpu | None:
    fields = _query(tool, device, ("name", "driver_version", "memory.total", "compute_cap"))
    if fields is None:  # drivers before 510 do not know compute_cap, and then answer nothing at all
        old = _query(tool, device, ("name", "driver_version", "memory.total"))
        if old is None:
            return None
        fields = (*old, "")
    name, driver, memory, capability = fields
    return Gpu(name, capability, driver, _cuda_of_driver(), int(memory) if memory.isdigit() else None)


def _query(tool: str, device: str, fields: tuple[str, ...]) -> tuple[str, ...] | None:
    """Return the fields' values; None where the tool, the driver or the device does not answer."""
    query = [tool, "-i", device, f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=NVIDIA_SMI_S, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    values = tuple(field.strip() for field in answer.strip().split(","))
    return values if len(values) == len(fields) else None


def _cuda_of_driver() -> str:
    """Return the CUDA version that the driver supports, '13.0', or '' where its library is missing."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return ""
    version = ctypes.c_int()
    failed = driver.cuDriverGetVersion(ctypes.byref(version))
    return "" if failed else f"{version.value // 1000}.{version.value % 1000 // 10}"
