"""What this process may use and uses, as the kernel says."""

from __future__ import annotations

import pytest

from engineworks.host import memory
from engineworks.host.memory import ResidentMemory

MEMINFO = "MemTotal:       16777216 kB\nMemFree:         1 kB\n"


@pytest.mark.parametrize(
    ("limit", "mib"),
    [("max\n", 16384), ("1073741824\n", 1024), ("99999999999999\n", 16384), ("", 16384)],
    ids=["no limit", "a container's", "more than there is", "no cgroup"],
)
def test_all_memory_is_the_host_s_or_the_container_s_limit(
    monkeypatch: pytest.MonkeyPatch, limit: str, mib: float
) -> None:
    files = {"/proc/meminfo": MEMINFO, "/sys/fs/cgroup/memory.max": limit}
    monkeypatch.setattr(memory, "read_text", files.__getitem__)
    assert ResidentMemory().total_mib() == mib


def test_memory_that_can_not_be_read_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "read_text", lambda path: "")
    assert memory.total_mib() == 0


def test_this_process_uses_part_of_it() -> None:
    meter = ResidentMemory()
    meter.reset()
    assert 0 < meter.peak_mib() < meter.total_mib()
