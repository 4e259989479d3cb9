"""When something was published, by two clocks: the wall clock may be set, and the boot's clock restarts at boot."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from engineworks.host.cpu import read_text


@dataclass(frozen=True)
class Published:
    """A moment. wall: POSIX time. boot: the kernel's boot id, '' where there is none. boot_s: seconds after that boot,
    suspension included."""

    wall: float
    boot: str = ""
    boot_s: float = 0.0

    def age_s(self) -> float:
        """Return seconds since then, by the clock that gives less."""
        here = now()
        age = here.wall - self.wall
        return min(age, here.boot_s - self.boot_s) if self.boot and self.boot == here.boot else age

    def to_json(self) -> list[Any]:
        return [self.wall, self.boot, self.boot_s]

    @staticmethod
    def from_json(value: Any) -> Published:
        wall, boot, boot_s = value
        return Published(float(wall), str(boot), float(boot_s))


def now() -> Published:
    """Return this moment."""
    return Published(time.time(), boot_id(), round(time.clock_gettime(time.CLOCK_BOOTTIME), 3))


def boot_id() -> str:
    """Return an id of this host's present boot; '' where the system has none."""
    return read_text("/proc/sys/kernel/random/boot_id").strip()
