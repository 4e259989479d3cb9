"""Memory of the C library's heap while tensors of many sizes come and go: kept flat, where that is glibc."""

from __future__ import annotations

import ctypes
import functools
import platform
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

APART_FROM_BYTES = 2 << 20
"""Blocks from this size on get pages of their own, which go back when they are freed. On a ResNet-50 that ends the
growth with the samples (20 to 26 MiB from 64 to 512, all of it holes in the heap) and costs some 5 % of the time."""

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""mallopt(3)."""

_LEARNED = {_M_MMAP_THRESHOLD: 32 << 20, _M_TRIM_THRESHOLD: 64 << 20}
"""What glibc's thresholds come to by themselves in a process that has freed large blocks; they stop learning once one
was set, so this is left to whatever runs in the process after us."""


@contextmanager
def large_blocks_apart() -> Iterator[None]:
    """Within: memory of freed tensors is not kept. Does nothing where the C library is another."""
    mallopt = _mallopt()
    if mallopt is None:
        yield
        return
    mallopt(_M_MMAP_THRESHOLD, APART_FROM_BYTES)
    try:
        yield
    finally:
        for parameter, value in _LEARNED.items():
            mallopt(parameter, value)


def trim_heap() -> None:
    """Give freed memory of smaller blocks back to the system too: tensors of changing sizes leave holes."""
    trim = getattr(_c_library(), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _mallopt() -> Callable[[int, int], int] | None:
    if platform.libc_ver()[0] != "glibc":
        return None
    found: Callable[[int, int], int] | None = getattr(_c_library(), "mallopt", None)
    return found


@functools.cache
def _c_library() -> ctypes.CDLL | None:
    return ctypes.CDLL(None) if sys.platform == "linux" else None
