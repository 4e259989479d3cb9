"""Expected memory of a build and memory left on this host: numbers for `schedule`, all in MiB.

A backend's `build_memory` gives the need of its builds: the peak resident memory of a child, measured by
`benchmarks/build_memory.py`, rounded up. The measured models are nearly all weights. Activations of large profiles need
more, which is not predicted.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from engineworks.engines.backends import backend
from engineworks.plan.steps import Step
from engineworks.store.store import Store

MIB = 2**20
LIMIT = "ENGINEWORKS_MEMORY_MIB"
"""Environment variable: a maximum for the available memory, for shared hosts."""


def needs_of(store: Store) -> Callable[[Step], float]:
    """Return the schedule's estimate for a step whose inputs are stored. Only builds are estimated, others are 0."""

    def need(step: Step) -> float:
        if step.kind != "build":
            return 0.0
        memory = backend(step.params["target"]["backend"]).TRAITS.build_memory
        return memory.mib(store.size_of(step.inputs["lower"]) / MIB)

    return need


def available_mib(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> float:
    """Return the minimum, in MiB, of what the host, each cgroup of this process, and `ENGINEWORKS_MEMORY_MIB` leave.

    Infinite if none of them sets a limit.
    """
    limits = [*_of_host(proc), *_of_cgroups(proc, cgroups)]
    limit = os.environ.get(LIMIT, "")
    if limit.replace(".", "", 1).isdigit():
        limits.append(float(limit))
    return min(limits, default=float("inf"))


def _of_host(proc: Path) -> Iterator[float]:
    """/proc/meminfo, MemAvailable in KiB: proc(5)."""
    for line in _read(proc / "meminfo").splitlines():
        name, _, rest = line.partition(":")
        if name == "MemAvailable":
            yield int(rest.split()[0]) / 1024


def _of_cgroups(proc: Path, root: Path) -> Iterator[float]:
    """Yield limit − usage of this process's cgroup and of those above it, version 2 or 1.

    Kernel: Documentation/admin-guide/cgroup-v2, cgroup-v1/memory. Pages of files that can be dropped do not count as
    used.
    """
    for line in _read(proc / "self" / "cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            yield from _up(root, path, "memory.max", "memory.current")
            yield from _up(root / "unified", path, "memory.max", "memory.current")
        elif "memory" in controllers.split(","):
            yield from _up(root / "memory", path, "memory.limit_in_bytes", "memory.usage_in_bytes")


def _up(root: Path, path: str, limit: str, usage: str) -> Iterator[float]:
    folder = root / path.lstrip("/")
    for place in (folder, *folder.parents):
        if not place.is_relative_to(root):
            return
        most, used = _read(place / limit).strip(), _read(place / usage).strip()
        if most.isdigit() and used.isdigit():
            stat = dict(line.split(None, 1) for line in _read(place / "memory.stat").splitlines() if " " in line)
            droppable = int(stat.get("total_inactive_file", stat.get("inactive_file", "0")))
            yield max(0.0, (int(most) - int(used) + droppable) / MIB)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
