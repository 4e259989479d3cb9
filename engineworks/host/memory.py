"""Memory of this process by the kernel's counts (Linux: /proc, proc(5))."""

from __future__ import annotations

from pathlib import Path


def resident_mib() -> float:
    """Return the present resident memory in MiB."""
    return _status_mib("VmRSS")


def peak_mib() -> float:
    """Return the peak of the resident memory in MiB since the process began or since `reset_peak`."""
    return _status_mib("VmHWM")


def reset_peak() -> None:
    """Restart the peak at the present value (writes 5 to clear_refs: proc(5))."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _status_mib(field: str) -> float:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 1024
    return 0.0


def total_mib() -> float:
    """Return the memory that this process may use in MiB: the host's, or its container's limit if less (cgroup v2,
    memory.max: bytes or 'max'). 0 where neither can be read."""
    lines = (line.split() for line in _read("/proc/meminfo").splitlines())
    kib = next((int(fields[1]) for fields in lines if fields[0] == "MemTotal:"), 0)
    limit = _read("/sys/fs/cgroup/memory.max").strip()
    return min(kib / 1024, int(limit) / 2**20) if limit.isdigit() else kib / 1024


def proportional_kib(pid: int) -> float:
    """Return the memory of a process, shared pages divided among those that share them (Pss); 0 where it has ended."""
    lines = _read(f"/proc/{pid}/smaps_rollup").splitlines()
    return next((float(line.split()[1]) for line in lines if line.startswith("Pss:")), 0.0)


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="ascii")
    except OSError:
        return ""


class ResidentMemory:
    """Satisfies `engines.backends.base.MemoryMeter` for a CPU."""

    def reset(self) -> None:
        reset_peak()

    def peak_mib(self) -> float:
        return peak_mib()

    def total_mib(self) -> float:
        return total_mib()
