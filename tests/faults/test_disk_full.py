"""The disk is full, really: a tmpfs of some hundred KiB where we may mount one, RLIMIT_FSIZE everywhere."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import STEPS

from engineworks.builds.record_note import note_used_by
from engineworks.builds.step import run_step
from engineworks.errors import StoreError
from engineworks.fingerprint import digest_of
from engineworks.host.child import ChildPool, default_pool
from engineworks.host.file_digests import FileDigests
from engineworks.plan.plan import Plan, plan_recipe
from engineworks.recipe.load import load_recipe
from engineworks.store.store import Store
from engineworks.tracking.runs import open_tracking

pytestmark = pytest.mark.xdist_group("faults")
PROGRAM = Path(sys.executable).parent / "engineworks"
DOCUMENT = {"step": "build"}
KEY = digest_of(DOCUMENT)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("no tmpfs can be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def write(store: Store, size: int) -> None:
    with store.writing(KEY, DOCUMENT, "tiny/build") as writing:
        if writing.hit is None:
            (writing.folder / "engine").write_bytes(bytes(size))


def assert_nothing_half_written(store: Store) -> None:
    assert store.get(KEY) is None
    assert [f for f in store.root.rglob("*") if f.is_file() and f.parent.name != "locks"] == []


def test_a_full_disk_is_one_message_and_leaves_nothing(small_disk: Path) -> None:
    store = Store(small_disk / "store")
    with pytest.raises(StoreError, match=r"tiny/build cannot be stored in .*: No space left on device; free some"):
        write(store, 2**20)
    assert_nothing_half_written(store)
    write(store, 1000)
    assert store.require(KEY).bytes == 1000


def test_a_file_that_may_not_grow_is_one_message_and_leaves_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        with pytest.raises(StoreError, match="tiny/build cannot be stored"):
            write(store, 20_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert_nothing_half_written(store)
    write(store, 20_000)
    assert store.require(KEY).bytes == 20_000


def test_a_child_on_a_full_disk_says_so_whatever_its_library_says(small_disk: Path) -> None:
    (small_disk / "rest").write_bytes(bytes(os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize))
    payload = {"kind": "fold", "id": "tiny/fold", "params": {}, "inputs": {}, "unkeyed": {}, "out": str(small_disk)}
    with ChildPool() as pool, pytest.raises(StoreError, match="tiny/fold: its result cannot be written: no space"):
        pool.run("engineworks.steps.job:main", payload)


def test_steps_on_a_full_disk_go_on_when_there_is_room_again(repository: Path, small_disk: Path) -> None:
    store = Store(small_disk / "store")
    plan = plan_recipe(load_recipe(repository / "recipes/tiny.yaml"), store, FileDigests(None))
    filler = small_disk / "rest"
    filler.write_bytes(bytes(220 << 10))
    with pytest.raises(StoreError, match=r"(?i)no space left"):
        run_all(plan, store)
    assert list((store.root / "partial").iterdir()) == []
    done = list(store.keys())
    assert all(store.get(key) for key in done)
    filler.unlink()
    subprocess.run(["mount", "-o", "remount,size=8m", str(small_disk)], check=True)
    assert run_all(plan, store) == len(done)


def run_all(plan: Plan, store: Store) -> int:
    """Run every step. Returns how many were stored already."""
    states = [run_step(step, store, default_pool(), echo=print).how for step in plan.steps.values()]
    return states.count("reused")


@pytest.mark.faults
def test_a_build_on_a_full_disk_goes_on_when_there_is_room_again(repository: Path, small_disk: Path) -> None:
    environment = os.environ | {"ENGINEWORKS_STORE": str(small_disk / "store")}
    artifacts = repository / "artifacts"
    note_used_by(Store(small_disk / "store"), artifacts, open_tracking(artifacts))  # else it may find the disk full
    build = [str(PROGRAM), "build", "recipes/tiny.yaml", "--json"]
    first = subprocess.run(build, env=environment, capture_output=True, text=True, check=False, timeout=240)
    assert first.returncode == 4, first.stderr
    assert first.stdout, first.stderr
    result = json.loads(first.stdout)
    errors = {e["error"].partition(": ")[2] for e in result["engines"] if e["error"]}
    assert errors
    assert all("no space left" in e.lower() for e in errors), errors
    assert "Traceback" not in first.stderr
    done = result["steps"]["run"]
    assert done > 0
    store = Store(small_disk / "store")
    assert list((store.root / "partial").iterdir()) == []
    assert all(store.get(key) for key in list(store.keys()))
    subprocess.run(["mount", "-o", "remount,size=8m", str(small_disk)], check=True)
    second = json.loads(subprocess.run(build, env=environment, capture_output=True, text=True, check=True).stdout)
    assert {e["verdict"] for e in second["engines"]} == {"pass"}
    assert second["steps"]["failed"] == 0
    assert second["steps"]["reused"] >= done  # a step may be stored whose log no longer fits
    assert second["steps"]["run"] + second["steps"]["reused"] == STEPS
    stored = [store.require(key).step for key in store.keys()]  # passports tell of every state that they were issued in
    assert sum(1 for step in stored if not step.endswith("/passport")) == STEPS
