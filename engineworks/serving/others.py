"""What other programs take of the processor while a server and its client work."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path


class OtherWork:
    """The part of all cores that neither this process nor the given ones used, since it was made."""

    def __init__(self, pids: Iterable[int]) -> None:
        self._pids = [os.getpid(), *pids]
        self._busy, self._idle = _host()
        self._own = self._used()

    def share(self) -> float:
        """Return the share, 0 to 1."""
        busy, idle = _host()
        own = self._used() - self._own
        total = busy - self._busy + idle - self._idle
        return max(0.0, min(1.0, (busy - self._busy - own) / total)) if total > 0 else 0.0

    def _used(self) -> float:
        """Ticks that the processes have used (proc(5), fields 14 and 15 of stat)."""
        ticks = 0.0
        for pid in self._pids:
            with contextlib.suppress(OSError):
                fields = (
                    Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
                )
                ticks += float(fields[11]) + float(fields[12])
        return ticks


def _host() -> tuple[float, float]:
    """Busy and idle ticks of all cores (proc(5), the first line of stat)."""
    with open("/proc/stat", encoding="ascii") as file:  # noqa: PTH123
        values = [float(v) for v in file.readline().split()[1:9]]
    idle = values[3] + values[4]
    return sum(values) - idle, idle
