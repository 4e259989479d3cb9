"""The wall clock is set back or forth while builds run."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
from faults.plant import Site

from engineworks.builds.record_note import note_used_by
from engineworks.commands.garbage import collect_garbage
from engineworks.fingerprint import digest_of
from engineworks.settings import Settings
from engineworks.store.store import Store
from engineworks.tracking.records import EngineRecord
from engineworks.tracking.runs import open_tracking

pytestmark = pytest.mark.xdist_group("faults")
RIGHT = time.time


def set_clock(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Let this process's wall clock be off by so much, and the files' times with it."""
    monkeypatch.setattr(time, "time", lambda: RIGHT() + seconds)


def publish(store: Store, number: int, off_s: float = 0.0) -> str:
    document = {"number": number}
    key = digest_of(document)
    with store.writing(key, document, "tiny/build") as writing:
        (writing.folder / "engine").write_bytes(b"plan")
    manifest = store.place(key) / "manifest.json"
    os.utime(manifest, (RIGHT() + off_s, RIGHT() + off_s))
    return key


def recorded(root: Path) -> Settings:
    """Settings of a store that a record is noted in, which refers to none of its artifacts."""
    tracking = open_tracking(root)
    with tracking.start_build("tiny", "key", {}, {}):
        note_used_by(Store(root / "store"), root, tracking)
    return Settings(root, str(root / "store"))


def test_no_run_ends_before_it_began(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tracking = open_tracking(tmp_path)
    with tracking.start_build("tiny", "key", {}, {}) as run:
        set_clock(monkeypatch, -3600)
        run.record_engine(EngineRecord("tiny/fp32/cpu"))
        set_clock(monkeypatch, -7200)
    runs = tracking.find_runs()
    assert len(runs) == 2
    assert all(r.ended_at is not None and r.ended_at >= r.started_at for r in runs)


@pytest.mark.parametrize("published_off_s", [-30 * 86400, 30 * 86400])
@pytest.mark.parametrize("now_off_s", [-86400 * 60, 0.0, 86400 * 60])
def test_gc_deletes_nothing_young_wherever_the_clock_was_and_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, published_off_s: float, now_off_s: float
) -> None:
    store = Store(tmp_path / "store")
    key = publish(store, 1, published_off_s)
    set_clock(monkeypatch, now_off_s)
    freed = collect_garbage(recorded(tmp_path), keep_hours=24, dry_run=False)
    assert (freed.artifacts, freed.kept) == (0, 1)
    assert store.get(key) is not None


def test_gc_still_frees_what_is_old_by_every_clock(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    publish(store, 1)
    assert collect_garbage(recorded(tmp_path), keep_hours=0, dry_run=False).artifacts == 1


def test_latest_is_what_was_published_last_whatever_the_clock_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path)
    publish(store, 1)
    set_clock(monkeypatch, -86400)
    publish(store, 2, -86400)
    assert store.latest("tiny/build") == {"number": 2}
    artifact = store.get(digest_of({"number": 2}))
    assert artifact is not None
    assert artifact.seconds >= 0


@pytest.mark.faults
@pytest.mark.parametrize("seconds", [-86400.0, 86400.0])
def test_a_clock_that_is_set_in_the_middle_of_a_whole_build_changes_nothing(
    site: Site, undisturbed: Mapping[str, str], seconds: float
) -> None:
    step = "tiny/int8/cpu/build"
    site.hold(step)
    build = site.start("build", "recipes/tiny.yaml")
    site.held(step)
    (site.folder / "clock").write_text(str(seconds), encoding="ascii")
    site.release(step)
    _, said = build.communicate(timeout=240)
    assert build.returncode == 0, said
    site.assert_as_undisturbed(undisturbed)
    runs = [*site.runs(), *site.runs("engine")]
    assert all(run.ended_at is not None and run.started_at <= run.ended_at for run in runs)
    (site.folder / "clock").unlink()
    again = site.command("build", "recipes/tiny.yaml", "--json")
    assert json.loads(again.stdout)["steps"]["run"] == 0
    site.assert_nothing_repeated()
