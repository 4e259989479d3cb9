"""Detects work in threads other than the measuring one: TensorRT-RTX compiles specialized kernels in some."""

from __future__ import annotations

import time

AT_WORK = 0.25
"""Minimum share of one core that counts as work. A compiler takes a core or more, a waiting thread some percent."""


class BackgroundWork:
    """Tells whether other threads of this process worked since the last call. Only for the measuring thread."""

    def __init__(self) -> None:
        self._wall, self._others = time.monotonic(), _others_s()

    def __call__(self) -> bool:
        wall, others = time.monotonic(), _others_s()
        share = (others - self._others) / max(wall - self._wall, 1e-9)
        self._wall, self._others = wall, others
        return share >= AT_WORK


def _others_s() -> float:
    """Return the processor seconds of all threads of this process except this one."""
    return time.process_time() - time.thread_time()
