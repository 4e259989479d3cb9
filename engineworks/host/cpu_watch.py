"""Load of this processor during a measurement, as Linux counts it.

own_s       processor time of this process, ended threads included
waited_s    time that its threads waited in a run queue (/proc/self/task/*/schedstat)
busy_s      time that its logical processors worked for any process (/proc/stat, in ticks of about 10 ms)
stolen_s    time that the hypervisor gave them to other machines (the same file)
throttled_s time that the container's quota stopped this process (cpu.stat of cgroup v1 or v2)
overheated  number of slowdowns of a core for its temperature (thermal_throttle, where the kernel has it)
mhz         fastest clock of those processors (cpufreq; a virtual machine mostly has none)
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from engineworks.host.cpu import read_text

WAITING_SHARE = 0.05
"""Maximum share of its time that a measured process may wait for a processor without a complaint."""
READING_S = 0.002
"""Time that lies between the clocks of one reading, at most."""
FOREIGN_SHARE = 0.10
"""Maximum share of its processors that others may use: they share caches, memory and clock."""
STOLEN_SHARE = 0.02
CLOCK_SPREAD = 0.10
"""Maximum difference between the slowest and the fastest clock reading, relative to the fastest."""

Reading = Mapping[str, object]

_COUNTS = (
    "monotonic_s", "own_s", "waited_s", "processors", "busy_s", "stolen_s", "throttled_s", "overheated",
)  # fmt: skip


class LoadWatch:
    """Satisfies `base.DeviceWatch` for a CPU."""

    def sample(self) -> Reading:
        """Return one reading, {} where the kernel keeps no such counts."""
        cpus = os.sched_getaffinity(0)
        stat = read_text("/proc/stat")
        waited = _waited_s()
        if waited is None or not stat:
            return {}
        busy_s, stolen_s = busy_and_stolen(stat, cpus)
        reading: dict[str, object] = {
            "monotonic_s": time.monotonic(), "own_s": time.process_time(), "waited_s": waited,
            "processors": len(cpus), "busy_s": busy_s, "stolen_s": stolen_s,
            "throttled_s": throttled_s(_cgroup_stat()), "overheated": _overheated(cpus),
        }  # fmt: skip
        mhz = _fastest_mhz(cpus)
        return reading | ({"mhz": mhz} if mhz else {})

    def complaints(self, readings: Sequence[Reading]) -> list[str]:
        complete = [{name: float(str(r[name])) for name in _COUNTS} for r in readings if "own_s" in r]
        if len(complete) < 2:
            return []
        clocks = [float(str(r["mhz"])) for r in readings if "mhz" in r]
        complaints = list(_load_complaints(complete[0], complete[-1]))
        if clocks and min(clocks) < (1 - CLOCK_SPREAD) * max(clocks):
            complaints.append(f"the processor's clock moved between {min(clocks):.0f} and {max(clocks):.0f} MHz")
        return complaints


def _load_complaints(first: Mapping[str, float], last: Mapping[str, float]) -> Iterator[str]:
    own_s, waited_s = last["own_s"] - first["own_s"], max(0.0, last["waited_s"] - first["waited_s"])
    there_s = last["processors"] * (last["monotonic_s"] - first["monotonic_s"])
    stolen_s = last["stolen_s"] - first["stolen_s"]
    grain_s = 2 * last["processors"] / os.sysconf("SC_CLK_TCK")  # each counter lags by up to a tick, at both ends
    foreign_s = last["busy_s"] - first["busy_s"] - own_s
    waited_s = min(waited_s, max(0.0, there_s - own_s - READING_S))  # its own threads wait for each other too
    if own_s + waited_s > 0 and (share := waited_s / (own_s + waited_s)) > WAITING_SHARE:
        yield f"other work had the processor: this process waited for it {100 * share:.0f}% of its time"
    if foreign_s - grain_s > FOREIGN_SHARE * there_s:
        yield f"other processes used {100 * foreign_s / there_s:.0f}% of the processors meanwhile"
    if stolen_s - grain_s > STOLEN_SHARE * there_s:
        yield f"the hypervisor gave {100 * stolen_s / there_s:.0f}% of the processors to other machines"
    if last["throttled_s"] > first["throttled_s"]:
        stopped_ms = 1000 * (last["throttled_s"] - first["throttled_s"])
        yield f"the container's quota stopped this process for {stopped_ms:.0f} ms"
    if last["overheated"] > first["overheated"]:
        yield "the processor was slowed for its temperature"


def busy_and_stolen(stat: str, cpus: set[int]) -> tuple[float, float]:
    """Return seconds that these logical processors worked, and stolen seconds (/proc/stat, proc(5))."""
    ticks = os.sysconf("SC_CLK_TCK")
    busy = stolen = 0
    for line in stat.splitlines():
        name, *fields = line.split()
        if name.startswith("cpu") and name[3:].isdigit() and int(name[3:]) in cpus:
            user, nice, system, _, _, irq, softirq, steal, *_ = (*map(int, fields), *[0] * 8)
            busy += user + nice + system + irq + softirq
            stolen += steal
    return busy / ticks, stolen / ticks


def throttled_s(cpu_stat: str) -> float:
    """Read seconds from a cgroup's cpu.stat: throttled_usec (v2) or throttled_time in nanoseconds (v1); 0 without a
    quota."""
    fields = dict(line.split() for line in cpu_stat.splitlines() if len(line.split()) == 2)
    return int(fields.get("throttled_usec", 0)) / 1e6 + int(fields.get("throttled_time", 0)) / 1e9


def _cgroup_stat() -> str:
    """Return the nearest cpu.stat that counts throttling: our own group's, or the visible root's in a container."""
    own = [line.split(":", 2) for line in read_text("/proc/self/cgroup").splitlines() if line.count(":") >= 2]
    paths = [path.rstrip("/") for _, controllers, path in own if not controllers or "cpu" in controllers.split(",")]
    folders = [f"/sys/fs/cgroup{top}{path}" for path in [*paths, ""] for top in ("", "/cpu", "/cpu,cpuacct")]
    texts = (read_text(f"{folder}/cpu.stat") for folder in dict.fromkeys(folders))
    return next((text for text in texts if "throttled" in text), "")


def _waited_s() -> float | None:
    times = [read_text(str(task / "schedstat")).split() for task in Path("/proc/self/task").glob("*")]
    counted = [int(t[1]) for t in times if len(t) == 3]
    return sum(counted) / 1e9 if counted else None


def _overheated(cpus: set[int]) -> int:
    texts = (read_text(f"/sys/devices/system/cpu/cpu{cpu}/thermal_throttle/core_throttle_count") for cpu in cpus)
    return sum(int(t) for t in texts if t.strip().isdigit())


def _fastest_mhz(cpus: set[int]) -> float | None:
    texts = (read_text(f"/sys/devices/system/cpu/cpu{cpu}/cpufreq/scaling_cur_freq") for cpu in cpus)
    return max((int(t) / 1000 for t in texts if t.strip().isdigit()), default=None)
