"""What other programs take of the processor while servers and their client work."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from engineworks.measure.gates.serving import MOST_OTHERS

Reading = Mapping[str, object]


class OtherWork:
    """The part of all cores that neither this process nor the given ones use. Satisfies `interleave.Watch`.

    pids: returns the servers' processes, which come and go with their models.
    """

    def __init__(self, pids: Callable[[], Iterable[int]] = tuple) -> None:
        self._pids = pids
        self._first = self.sample()

    def sample(self) -> Reading:
        """Return the host's busy and idle ticks, and those of this process and the servers."""
        busy, idle = _host()
        return {"busy": busy, "idle": idle, "own": _used([os.getpid(), *self._pids()])}

    def share(self) -> float:
        """Return the share since this object was made, 0 to 1."""
        return _share(self._first, self.sample())

    def complaints(self, readings: Sequence[Reading]) -> list[str]:
        share = _share(readings[0], readings[-1])
        return [f"other programs took {100 * share:.0f}% of the processor"] if share > MOST_OTHERS else []


def _share(first: Reading, last: Reading) -> float:
    busy, idle, own = (float(str(last[k])) - float(str(first[k])) for k in ("busy", "idle", "own"))
    total = busy + idle
    return max(0.0, min(1.0, (busy - max(0.0, own)) / total)) if total > 0 else 0.0


def _used(pids: Iterable[int]) -> float:
    """Ticks that the processes have used (proc(5), fields 14 and 15 of stat)."""
    ticks = 0.0
    for pid in pids:
        with contextlib.suppress(OSError):
            stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
            fields = stat.rpartition(")")[2].split()
            ticks += float(fields[11]) + float(fields[12])
    return ticks


def _host() -> tuple[float, float]:
    """Busy and idle ticks of all cores (proc(5), the first line of stat)."""
    with open("/proc/stat", encoding="ascii") as file:  # noqa: PTH123
        values = [float(v) for v in file.readline().split()[1:9]]
    idle = values[3] + values[4]
    return sum(values) - idle, idle
