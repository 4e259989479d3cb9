"""The process that owns a running build, and whether it is certainly dead (`kill -9` leaves no message)."""

from __future__ import annotations

import json
import os
import platform
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Owner:
    """A process, identified for all time: a pid may be reused, but not with the same boot and start.

    host: its name. boot: the kernel's boot id. pid_space: the pid namespace, since containers may share a host name.
    started: clock ticks after boot. Empty strings where the system does not report them.
    """

    host: str
    boot: str
    pid_space: str
    pid: int
    started: str

    def to_text(self) -> str:
        return json.dumps(asdict(self))

    def is_dead(self) -> bool:
        """True only where it is certain: never for another host or another pid namespace."""
        here = current_owner()
        if self.host != here.host:
            return False
        if self.boot != here.boot:
            return bool(self.boot and here.boot)
        return self.pid_space == here.pid_space and _start_of(self.pid) != self.started


def current_owner() -> Owner:
    """Return this process."""
    return Owner(
        platform.node(), _read("/proc/sys/kernel/random/boot_id"), _pid_space(), os.getpid(), _start_of(os.getpid())
    )


def read_owner(text: str) -> Owner | None:
    """Read what `Owner.to_text` wrote, None for other text."""
    try:
        value = json.loads(text)
        return Owner(value["host"], value["boot"], value["pid_space"], int(value["pid"]), value["started"])
    except (ValueError, TypeError, KeyError):
        return None


def _start_of(pid: int) -> str:
    """Return clock ticks between boot and the start of `pid`; `gone` for a missing process or a zombie."""
    stat = _read(f"/proc/{pid}/stat")
    if stat:  # pid (name, which may hold blanks and brackets) state ppid …; field 22 is the start, see proc(5)
        fields = stat.rpartition(")")[2].split()
        return "gone" if fields[0] in "ZX" else fields[19]
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return "gone"
    except PermissionError:
        pass
    return ""


def _pid_space() -> str:
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return ""


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""
