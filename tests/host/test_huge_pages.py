"""Moving memory to huge pages: which blocks, and that their content stays."""

from __future__ import annotations

import mmap

import numpy as np

from engineworks.host.memory import HUGE_BYTES, _full_blocks, use_huge_pages

HUGE = HUGE_BYTES


def block(start: int, end: int, resident: float, access: str = "rw-p", file: str = "") -> str:
    size = (end - start) >> 10
    device = "fe:00 77" if file else "00:00 0"
    lines = [f"{start:x}-{end:x} {access} 00000000 {device} {file}".rstrip(), f"Size:           {size} kB"]
    lines += ["KernelPageSize:        4 kB", f"Rss:            {int(size * resident)} kB", "VmFlags: rd wr mr mw"]
    return "\n".join(lines) + "\n"


def blocks(*given: str) -> list[tuple[int, int]]:
    return list(_full_blocks("".join(given)))


def test_whole_huge_pages_of_blocks_in_use() -> None:
    small, file = block(HUGE, 2 * HUGE - 4096, 1), block(4 * HUGE, 8 * HUGE, 1, file="/model.data")
    code, empty = block(10 * HUGE, 12 * HUGE, 1, access="r-xp"), block(20 * HUGE, 24 * HUGE, 0.5)
    full = block(30 * HUGE + 4096, 34 * HUGE + 8192, 0.9)
    heap = block(40 * HUGE, 42 * HUGE, 1).replace("00:00 0", "00:00 0          [heap]", 1)
    assert blocks(small, file, code, empty) == []
    assert blocks(small, full, file, heap) == [(31 * HUGE, 34 * HUGE), (40 * HUGE, 42 * HUGE)]


def test_content_stays() -> None:
    with mmap.mmap(-1, 4 * HUGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        values = np.frombuffer(memory, np.uint32)
        values[:] = np.arange(values.size)
        asked = use_huge_pages()
        assert asked % HUGE == 0
        assert np.array_equal(values, np.arange(values.size))
        del values
