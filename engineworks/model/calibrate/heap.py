"""Keeps the C library's heap flat while tensors of many sizes are allocated and freed, if it is glibc's."""

from __future__ import annotations

import ctypes
import functools
import platform
import sys

_LEARNED = {-3: 32 << 20, -1: 64 << 20}
"""M_MMAP_THRESHOLD and M_TRIM_THRESHOLD of mallopt(3), in bytes: their final values in a process that has freed large
blocks. Before that the places of blocks vary, and the memory left over differs from run to run.

Separate pages for all blocks from 2 MiB on would keep the peak to the MiB. But they must be cleared each time: 20 of
120 ms of processor time for each sample of a ResNet-50.
"""


def settle_heap() -> None:
    """Fix where blocks of each size go, for the rest of the process. Does nothing with other C libraries."""
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
