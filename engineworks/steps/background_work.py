"""Whether threads other than the measuring one are at work: TensorRT-RTX compiles specialized kernels in some."""

from __future__ import annotations

import time

AT_WORK = 0.25
"""Share of one core from which on it is work: a compiler takes a core and more, a thread that waits some percent."""


class BackgroundWork:
    """Call it to hear whether other threads of this process worked since the last call. To be made, and called, by the
    thread that measures."""

    def __init__(self) -> None:
        self._wall, self._others = time.monotonic(), _others_s()

    def __call__(self) -> bool:
        wall, others = time.monotonic(), _others_s()
        share = (others - self._others) / max(wall - self._wall, 1e-9)
        self._wall, self._others = wall, others
        return share >= AT_WORK


def _others_s() -> float:
    """Processor seconds of all threads of this process but this one."""
    return time.process_time() - time.thread_time()
