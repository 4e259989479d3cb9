from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

import engineworks.errors
from engineworks.commands.garbage import collect_garbage
from engineworks.errors import InputError, TrackingError
from engineworks.fingerprint import digest_of
from engineworks.settings import Settings
from engineworks.store.leases import Lease, held_leases
from engineworks.store.lineage import lineage
from engineworks.store.record_notes import NotedRecord, note_record
from engineworks.store.store import Store
from engineworks.tracking.records import RECORD_ID, STORE_KEYS, EngineRecord
from engineworks.tracking.runs import open_tracking

pytest.importorskip("mlflow")
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")  # MLflow's own models
ROOT = Path(engineworks.errors.__file__).parents[1]


def publish(store: Store, number: int, step: str = "tiny/fp32/cpu/build", **inputs: str) -> str:
    document = {"number": number, "inputs": inputs}
    key = digest_of(document)
    with store.writing(key, document, step) as writing:
        if writing.hit is None:
            (writing.folder / "engine").write_bytes(bytes(10))
    return key


@pytest.fixture(scope="module")
def _record(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """A store with one recorded artifact, which is returned with the record's id, and one of nobody."""
    root = tmp_path_factory.mktemp("record")
    store, tracking = Store(root / "store"), open_tracking(root)
    used = publish(store, 1)
    publish(store, 2)
    with tracking.start_build("tiny", "key", {}, {}) as build:
        build.record_engine(EngineRecord("tiny/fp32/cpu", store_keys=(used,)))
    return root, used, tracking.record_id()


@pytest.fixture
def record(_record: tuple[Path, str, str], tmp_path: Path) -> tuple[Settings, str]:
    """A copy, noted in its store."""
    root, used, record_id = _record
    shutil.copytree(root, tmp_path, dirs_exist_ok=True)
    note_record(tmp_path / "store", NotedRecord(str(tmp_path), f"sqlite:///{tmp_path / 'mlflow.db'}", record_id))
    return Settings(tmp_path, str(tmp_path / "store")), used


def keys(settings: Settings) -> set[str]:
    return set(Store(Path(settings.store)).keys())


def test_what_no_run_refers_to_goes_and_the_rest_stays(record: tuple[Settings, str]) -> None:
    settings, used = record
    would = collect_garbage(settings, keep_hours=0, dry_run=True)
    assert (would.artifacts, would.kept) == (1, 1)
    assert len(keys(settings)) == 2
    freed = collect_garbage(settings, keep_hours=0, dry_run=False)
    assert (freed.artifacts, freed.kept, freed.bytes) == (1, 1, would.bytes)
    assert keys(settings) == {used}


def no_database(settings: Settings) -> Settings:
    (settings.artifacts / "mlflow.db").unlink()
    return settings


def empty_database(settings: Settings) -> Settings:
    (settings.artifacts / "mlflow.db").write_bytes(b"")
    return settings


def no_such_server(settings: Settings) -> Settings:
    return Settings(settings.artifacts, settings.store, tracking_uri="http://127.0.0.1:9")


def other_artifacts(settings: Settings) -> Settings:
    return Settings(settings.artifacts / "elsewhere", settings.store)


def another_record(settings: Settings, artifacts: str = "other") -> Settings:
    """A record with another id, whose run refers to nothing in the store."""
    folder = settings.artifacts / artifacts
    folder.mkdir(exist_ok=True)
    if not (folder / "mlflow.db").exists():
        shutil.copyfile(settings.artifacts / "mlflow.db", folder / "mlflow.db")
    with contextlib.closing(sqlite3.connect(folder / "mlflow.db")) as database, database:
        database.execute(f"UPDATE experiment_tags SET value = 'other' WHERE key = '{RECORD_ID}'")
        database.execute(f"UPDATE tags SET value = '[]' WHERE key = '{STORE_KEYS}'")
    return Settings(folder, settings.store)


def new_database(settings: Settings) -> Settings:
    """The database was deleted, and the next build made another."""
    another_record(settings, ".")
    uri = f"sqlite:///{settings.artifacts / 'mlflow.db'}"
    note_record(Path(settings.store), NotedRecord(str(settings.artifacts), uri, "other"))
    return settings


UNKNOWN = {
    "no database": (no_database, "there is no record of builds at"),
    "an empty database": (empty_database, "there is no record of builds at"),
    "no server": (no_such_server, "does not answer"),
    "other artifacts": (other_artifacts, "there is no record of builds at"),
    "a new database": (new_database, "where another is now"),
}


@pytest.mark.parametrize("case", UNKNOWN)
def test_not_knowing_is_not_unused(record: tuple[Settings, str], case: str) -> None:
    change, words = UNKNOWN[case]
    settings = change(record[0])
    files = sorted(path for path in settings.artifacts.glob("*") if path.name.startswith("mlflow.db"))
    with pytest.raises(TrackingError, match=words):
        collect_garbage(settings, keep_hours=0, dry_run=False)
    assert len(keys(settings)) == 2
    assert sorted(path for path in settings.artifacts.glob("*") if path.name.startswith("mlflow.db")) == files


def test_every_record_that_uses_the_store_is_asked(record: tuple[Settings, str]) -> None:
    settings, used = record
    other = another_record(settings)
    collect_garbage(other, keep_hours=0, dry_run=False)
    assert keys(settings) == {used}


def test_a_record_of_another_store_frees_nothing(record: tuple[Settings, str]) -> None:
    settings = record[0]
    for note in (Path(settings.store) / "records").glob("*.json"):  # as of a version without notes
        note.unlink()
    other = another_record(settings)
    with pytest.raises(TrackingError, match="refers to nothing in the store"):
        collect_garbage(other, keep_hours=0, dry_run=False)
    assert len(keys(settings)) == 2


@pytest.mark.parametrize("hours", [-1.0, -0.001, float("nan"), float("-inf")])
def test_hours_below_nothing_are_refused(record: tuple[Settings, str], hours: float) -> None:
    with pytest.raises(InputError, match="--keep-hours"):
        collect_garbage(record[0], keep_hours=hours, dry_run=False)


def test_a_running_builds_artifacts_stay_whatever_the_hours(record: tuple[Settings, str]) -> None:
    settings, used = record
    store = Store(Path(settings.store))
    reused = next(key for key in store.keys() if key != used)
    lease = Lease(store.root, [reused])
    fresh = publish(store, 3)
    collect_garbage(settings, keep_hours=0, dry_run=False)
    assert keys(settings) == {used, reused, fresh}
    lease.end()
    collect_garbage(settings, keep_hours=0, dry_run=False)
    assert keys(settings) == {used}


HOLD = """
import sys, time
from pathlib import Path
from engineworks.store.leases import Lease
lease = Lease(Path(sys.argv[1]), [])
print("held", flush=True)
time.sleep(60)
"""


def test_the_lease_of_a_killed_build_ends_with_it(tmp_path: Path) -> None:
    environ = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environ) as build:
        assert build.stdout is not None
        assert build.stdout.readline() == b"held\n"
        assert len(held_leases(tmp_path)) == 1
        build.send_signal(signal.SIGKILL)
        build.wait()
    assert held_leases(tmp_path) == []
    assert list((tmp_path / "leases").glob("*.json")) == []


def test_lineage_is_what_it_was_made_from_and_what_was_made_of_its_engines(tmp_path: Path) -> None:
    store = Store(tmp_path)
    export = publish(store, 1, "tiny/export")
    lower = publish(store, 2, "tiny/int8/lower", export=export)
    build = publish(store, 3, "tiny/int8/cpu/build", lower=lower)
    reference = publish(store, 4, "tiny/reference", export=export)
    compare = publish(store, 5, "tiny/int8/cpu/compare", build=build, reference=reference)
    other = publish(store, 6, "tiny/fp16/lower", export=export)
    assert lineage(store, [build]) == {export, lower, build, reference, compare}
    assert lineage(store, [lower]) == {export, lower}
    assert other not in lineage(store, [build])


def test_an_artifact_that_vanishes_meanwhile_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)
    here, gone = publish(store, 1), digest_of({"never": "there"})
    assert store.remove(gone) == store.size_of(gone) == 0
    assert store.remove(here) > 0
    monkeypatch.setattr(Path, "glob", lambda self, _: iter([self / "vanished"]))
    assert store.sweep(0) == 0


def test_a_fetch_from_a_shared_store_is_not_swept(tmp_path: Path) -> None:
    store = Store(tmp_path)
    folder = store._partial("ab" * 32)
    with store._locked("ab" * 32 + ".fetch"):
        os.utime(folder, (0, time.time() - 100))
        assert store.sweep(0) == 0
    assert store.sweep(0) == 1
