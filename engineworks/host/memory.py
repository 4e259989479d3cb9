"""Memory of this process: by the kernel's counts (Linux: /proc, proc(5)), in the C library's heap, and on huge pages.

A decoder reads all its weights for every token, and finding pages of 4 KiB costs an eighth of its time
(benchmarks/decoder_cpu.py: SmolLM2 in fp32, 63.9 instead of 73.7 ms a token in eight processes each).
"""

from __future__ import annotations

import ctypes
import functools
import platform
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from engineworks.host.cpu import read_text


def resident_mib() -> float:
    """Return the present resident memory in MiB."""
    return _status_mib("VmRSS")


def peak_mib(pid: int | str = "self") -> float:
    """Return the peak of a process's resident memory in MiB since it began or since its `reset_peak`."""
    return _status_mib("VmHWM", pid)


def reset_peak() -> None:
    """Restart the peak at the present value (writes 5 to clear_refs: proc(5))."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _status_mib(field: str, pid: int | str = "self") -> float:
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace").splitlines()
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{field}:")), 0.0)


def total_mib() -> float:
    """Return the memory that this process may use in MiB: the host's, or its container's limit if less (cgroup v2,
    memory.max: bytes or 'max'). 0 where neither can be read."""
    lines = (line.split() for line in read_text("/proc/meminfo").splitlines())
    kib = next((int(fields[1]) for fields in lines if fields[0] == "MemTotal:"), 0)
    limit = read_text("/sys/fs/cgroup/memory.max").strip()
    return min(kib / 1024, int(limit) / 2**20) if limit.isdigit() else kib / 1024


def proportional_kib(pid: int) -> float:
    """Return the memory of a process, shared pages divided among those that share them (Pss); 0 where it has ended."""
    lines = read_text(f"/proc/{pid}/smaps_rollup").splitlines()
    return next((float(line.split()[1]) for line in lines if line.startswith("Pss:")), 0.0)


class ResidentMemory:
    """Satisfies `engines.backends.base.MemoryMeter` for a CPU."""

    reset, total_mib = staticmethod(reset_peak), staticmethod(total_mib)

    def peak_mib(self) -> float:
        return peak_mib()


_LEARNED = {-3: 32 << 20, -1: 64 << 20}
"""M_MMAP_THRESHOLD and M_TRIM_THRESHOLD of mallopt(3), in bytes: their final values in a process that has freed large
blocks. Before that the places of blocks vary, and the memory left over differs from run to run.

Separate pages for all blocks from 2 MiB on would keep the peak to the MiB. But they must be cleared each time: 20 of
120 ms of processor time for each sample of a ResNet-50.
"""


def settle_heap() -> None:
    """Fix where blocks of each size go, for the rest of the process, so that the heap stays flat while tensors of many
    sizes come and go. Does nothing with other C libraries than glibc."""
    mallopt = getattr(_c_library(), "mallopt", None) if platform.libc_ver()[0] == "glibc" else None
    if mallopt is not None:
        for parameter, value in _LEARNED.items():
            mallopt(parameter, value)


def trim_heap() -> None:
    """Return freed memory to the system: tensors of changing sizes leave holes."""
    trim = getattr(_c_library(), "malloc_trim", None)
    if trim is not None:
        trim(0)


@functools.cache
def _c_library() -> ctypes.CDLL | None:
    return ctypes.CDLL(None) if sys.platform == "linux" else None


HUGE_BYTES = 2 << 20
COLLAPSE = 25
"""MADV_COLLAPSE of madvise(2), Linux 6.1 and later: moves a range to huge pages at once, with its content."""


def use_huge_pages() -> int:
    """Move the large blocks of this process's memory to huge pages of 2 MiB, and return how many bytes the kernel was
    asked to move. Costs about 2 ms of processor time a MiB, once. Where the system cannot, nothing changes: the same
    numbers come from small pages, only later."""
    try:
        blocks = list(_full_blocks(Path("/proc/self/smaps").read_text(encoding="ascii", errors="replace")))
        advise = ctypes.CDLL(None).madvise
    except (OSError, AttributeError):  # not Linux
        return 0
    advise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return sum(end - start for start, end in blocks if not advise(start, end - start, COLLAPSE))


def _full_blocks(smaps: str) -> Iterator[tuple[int, int]]:
    """Yield whole huge pages of private memory without a file, of blocks that are mostly in use: the rest of a block is
    filled with zeros, which take memory. smaps: text of /proc/PID/smaps, see proc(5)."""
    block = r"^([0-9a-f]+)-([0-9a-f]+) rw.p \S+ 00:00 0 *(?:\[heap\])?\nSize: +(\d+) kB\n(?:.*\n)*?Rss: +(\d+) kB$"
    for first, last, size, resident in re.findall(block, smaps, re.MULTILINE):
        start, end = -(-int(first, 16) // HUGE_BYTES) * HUGE_BYTES, int(last, 16) // HUGE_BYTES * HUGE_BYTES
        if end > start and int(resident) >= 0.8 * int(size):
            yield start, end
