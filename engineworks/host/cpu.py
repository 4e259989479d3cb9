"""The processor as Linux describes it: measurements on the CPU depend on it."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnxruntime

ISA_FLAGS = (
    "avx2", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16",
    "asimddp", "i8mm", "bf16", "sve", "sve2",
)  # fmt: skip
"""Flags of /proc/cpuinfo that select ONNX Runtime's kernels (x86-64, then Arm)."""


def processors(cpuinfo: str) -> Iterator[dict[str, str]]:
    """Yield the blocks of /proc/cpuinfo, one per logical processor."""
    for block in cpuinfo.strip().split("\n\n"):
        fields = (line.partition(":") for line in block.splitlines())
        yield {key.strip(): value.strip() for key, _, value in fields}


def processor_name(cpuinfo: str) -> str:
    first = next(processors(cpuinfo), {})
    return first.get("model name") or platform.machine()


def instruction_sets(cpuinfo: str) -> str:
    """Return the processor's `ISA_FLAGS`, in that order: 'avx2 avx512f avx512_vnni'."""
    flags = _flags(cpuinfo)
    return " ".join(f for f in ISA_FLAGS if f in flags)


def _flags(cpuinfo: str) -> list[str]:
    first = next(processors(cpuinfo), {})
    return (first.get("flags") or first.get("Features") or "").split()


HALF_FLAGS = ("avx512_fp16", "amx_fp16", "fphp", "asimdhp")
"""Flags of processors that compute in fp16 instead of converting to fp32 and back (x86-64, then Arm)."""


def computes_half(cpuinfo: str) -> bool:
    """Whether the processor has arithmetic in fp16."""
    return not set(HALF_FLAGS).isdisjoint(_flags(cpuinfo))


def physical_cores(cpuinfo: str, allowed: set[int]) -> int:
    """Return the number of cores behind the usable logical processors: two threads of one core count once."""
    cores = {
        (p.get("physical id", "0"), p.get("core id", p["processor"]))
        for p in processors(cpuinfo)
        if p.get("processor", "").isdigit() and int(p["processor"]) in allowed
    }
    return len(cores) or len(allowed)


def quota_cores(cpu_max: str) -> int | None:
    """Return a container's limit in whole cores, rounded up (cgroup v2, cpu.max: '<quota> <period>' or 'max …')."""
    quota, _, period = cpu_max.strip().partition(" ")
    return max(1, math.ceil(int(quota) / int(period))) if quota.isdigit() and period.isdigit() else None


@cache
def usable_cores() -> int:
    """Return physical cores that this process may use: those of its affinity mask, at most its container's quota."""
    cores = physical_cores(read_text("/proc/cpuinfo"), os.sched_getaffinity(0))
    quota = quota_cores(read_text("/sys/fs/cgroup/cpu.max"))
    return min(cores, quota) if quota else cores


def limit_threads(options: onnxruntime.SessionOptions, threads: int = 0, spin_us: int = 0) -> None:
    """Set the threads of an ONNX Runtime session that may share the host. threads: 0 for one per usable core. spin_us:
    microseconds that an idle thread busy-waits.

    By default a session uses every core of the host, whatever the container's quota, and its idle threads spin. Where
    several steps run at once, each would take cores from the others by waiting.
    """
    options.intra_op_num_threads = threads or usable_cores()
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spin_us else "0")
    if spin_us:
        options.add_session_config_entry("session.intra_op.spin_duration_us", str(spin_us))


@cache
def describe() -> dict[str, str]:
    """Return name, usable cores and instruction sets of this processor."""
    text = read_text("/proc/cpuinfo")
    return {"processor": processor_name(text), "cores": str(usable_cores()), "isa": instruction_sets(text)}


def read_text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
