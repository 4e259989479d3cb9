"""Weights on huge pages: a decoder reads all its weights for every token, and finding pages of 4 KiB costs an eighth of
its time (benchmarks/decoder_cpu.py: SmolLM2 in fp32, 63.9 instead of 73.7 ms a token in eight processes each)."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterator
from pathlib import Path

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
