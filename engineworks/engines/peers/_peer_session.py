"""What sessions of all baselines share."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from engineworks.errors import RunError
from engineworks.host.lazy import Array


class PeerSession:
    """A baseline's session: one run at a time."""

    def throughput(self, feeds: Mapping[str, Array], streams: int, seconds: float) -> float:
        """Raises `RunError`: a peer has no streams."""
        raise RunError(f"throughput over {streams} streams is not measured for a peer: one run at a time is compared")


def time_each(once: Callable[[], object], runs: int) -> tuple[float, ...]:
    """Return the time of each of the runs in ms, by the host's clock."""
    clock = time.perf_counter_ns
    times = []
    for _ in range(runs):
        start = clock()
        once()
        times.append((clock() - start) / 1e6)
    return tuple(times)
