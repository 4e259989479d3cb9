"""What is left of memory, as the kernel tells it, and what a build is expected to need."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from engineworks.builds.memory_guard import MIB, available_mib, needs_of
from engineworks.builds.schedule import Schedule
from engineworks.engines.backends import backend
from engineworks.fingerprint import digest_of
from engineworks.plan.plan import Plan
from engineworks.plan.steps import Step
from engineworks.store.store import Store

MEASURED = Path(__file__).parents[2] / "benchmarks" / "results" / "build-memory-cpu.json"


def host(root: Path, cgroup: str, files: dict[str, str]) -> tuple[Path, Path]:
    files = {"proc/meminfo": "MemTotal: 999 kB\nMemAvailable: 1024000 kB\n", "proc/self/cgroup": cgroup} | files
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root / "proc", root / "cgroup"


@pytest.mark.parametrize(
    ("cgroup", "files", "mib"),
    [
        ("0::/\n", {}, 1000),
        ("0::/a/b\n", {"cgroup/a/b/memory.max": "max\n", "cgroup/a/b/memory.current": "5\n"}, 1000),
        ("0::/a/b\n", {"cgroup/a/memory.max": str(300 * MIB), "cgroup/a/memory.current": str(100 * MIB)}, 200),
        (
            "0::/a\n",
            {
                "cgroup/a/memory.max": str(300 * MIB), "cgroup/a/memory.current": str(300 * MIB),
                "cgroup/a/memory.stat": f"anon 5\ninactive_file {50 * MIB}\n",
            },
            50,
        ),
        (
            "4:cpu,memory:/x\n0::/\n",
            {
                "cgroup/memory/x/memory.limit_in_bytes": str(400 * MIB),
                "cgroup/memory/x/memory.usage_in_bytes": str(100 * MIB),
            },
            300,
        ),
    ],
    ids=["host", "no limit", "the one above", "droppable pages", "version 1"],
)  # fmt: skip
def test_the_least_that_host_and_cgroups_leave_counts(
    tmp_path: Path, cgroup: str, files: dict[str, str], mib: float
) -> None:
    assert available_mib(*host(tmp_path, cgroup, files)) == mib


def test_a_given_limit_counts_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENGINEWORKS_MEMORY_MIB", "64")
    assert available_mib(*host(tmp_path, "0::/\n", {})) == 64


def test_this_host_says_something() -> None:
    assert 1 < available_mib() < 1e9


def test_builds_took_no_more_memory_than_their_backend_says() -> None:
    for built in json.loads(MEASURED.read_text())["builds"]:
        assert built["peak_mib"] <= backend(built["backend"]).TRAITS.build_memory.mib(built["model_mib"])


def test_builds_that_do_not_fit_beside_each_other_run_one_after_the_other(tmp_path: Path) -> None:
    store, steps = Store(tmp_path), []
    for number in (1, 2):
        document = {"lower": number}
        key = digest_of(document)
        with store.writing(key, document, "m/lower") as writing:
            (writing.folder / "model.onnx").write_bytes(bytes(2 * MIB))
        params = {"params": {"target": {"backend": "onnxruntime"}}}
        steps.append(Step("build", f"b{number}", f"b{number}", params, {"lower": key}, {}))
    need = needs_of(store)(steps[0])
    assert need == pytest.approx(backend("onnxruntime").TRAITS.build_memory.mib(2), abs=1)
    plan = cast(Plan, SimpleNamespace(steps={s.key: s for s in steps}, to_do=tuple(steps)))
    for available, together in ((2 * need + 1, 2), (2 * need - 1, 1), (1.0, 1)):
        schedule: Any = Schedule(plan, need=needs_of(store))
        assert len(schedule.ready(2, available)) == together
        assert (schedule.large is not None) == (available < need)
