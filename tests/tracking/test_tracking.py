from __future__ import annotations

import json
import math
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

import engineworks.errors
from engineworks.errors import BuildError, Interrupted, TrackingError
from engineworks.tracking.existing import open_existing
from engineworks.tracking.opening import prepare_environment
from engineworks.tracking.owner import Owner, current_owner, read_owner
from engineworks.tracking.records import (
    LONG_VALUES,
    PARAM_CHARS,
    TAG_CHARS,
    EngineRecord,
    legal_name,
    pack_batch,
    store_keys_of,
)
from engineworks.tracking.runs import Tracking, open_tracking

pytest.importorskip("mlflow")

pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")  # MLflow's own models

ROOT = Path(engineworks.errors.__file__).parents[1]


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One database for all tests that are content with a recipe name of their own; its path holds a blank."""
    return tmp_path_factory.mktemp("art facts")


@pytest.fixture(scope="module")
def tracking(artifacts: Path) -> Tracking:
    return open_tracking(artifacts)


def python(code: str, *arguments: object) -> subprocess.Popen[str]:
    environ = {n: v for n, v in os.environ.items() if "MLFLOW" not in n and n != "DO_NOT_TRACK"}
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        env=environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def children_of(tracking: Tracking, parent: str) -> dict[str | None, str]:
    runs = tracking.find_runs(parent_run_id=parent, limit=100)
    assert len({run.engine for run in runs}) == len(runs), "an engine has more than one run"
    return {run.engine: run.status for run in runs}


# --- what is recorded, and how it is made to fit


def test_names_are_made_legal_and_legal_ones_are_kept() -> None:
    assert legal_name("interactive/latency_ms_p50") == "interactive/latency_ms_p50"
    assert legal_name("loss (abs) 50%") == "loss _abs_ 50_"
    assert legal_name("/../a//b/.") == "a/b"
    assert legal_name("..") == "_"
    assert len(legal_name("x" * 300)) == 250


def test_names_that_become_one_stay_apart() -> None:
    metrics = {"slice/<18": 0.5, "slice/>18": 0.25, "slice/_18": 1.0, "x" * 300: 2.0, "x" * 301: 3.0}
    packed = pack_batch({"a?": "1", "a!": "2"}, metrics, {"b?": "1", "b!": "2"})
    assert sorted(packed.metrics.values()) == sorted(metrics.values())
    assert packed.metrics["slice/_18"] == 1.0
    assert all(len(name) <= 250 and legal_name(name) == name for name in packed.metrics)
    assert (sorted(packed.params.values()), sorted(packed.tags.values())) == (["1", "2"], ["1", "2"])
    assert set(packed.params) == set(pack_batch({"a!": "2", "a?": "1"}, {}, {}).params)


def test_nan_and_infinity_are_named_in_a_tag_instead_of_being_metrics() -> None:
    batch = pack_batch({}, {"cosine": math.nan, "p99": math.inf, "top1": 0.5}, {})
    assert batch.metrics == {"top1": 0.5}
    assert json.loads(batch.tags["nonfinite_metrics"]) == ["cosine", "p99"]


def test_long_values_are_cut_with_a_note_and_kept_whole_as_a_text() -> None:
    batch = pack_batch({"plan": "p" * 9000, "short": "s"}, {}, {"sentence": "t" * 6000})
    assert len(batch.params["plan"]) == PARAM_CHARS
    assert batch.params["plan"].endswith(f"9000 characters are in {LONG_VALUES})")
    assert len(batch.tags["sentence"]) == TAG_CHARS
    assert batch.params["short"] == "s"
    kept = json.loads(batch.texts[LONG_VALUES])
    assert kept == {"params": {"plan": "p" * 9000}, "tags": {"sentence": "t" * 6000}}


@pytest.mark.parametrize("count", [0, 1, 70, 500])
def test_any_number_of_store_keys_fits_into_tags_and_comes_back(count: int) -> None:
    keys = {f"{n:064x}" for n in range(count)}
    tags = pack_batch({}, {}, {}, store_keys=keys).tags
    assert all(len(text) <= TAG_CHARS for text in tags.values())
    assert store_keys_of(tags) == keys


def test_a_param_keeps_its_first_value_and_the_new_one_is_told() -> None:
    batch = pack_batch({"a": "1", "b": "2"}, {}, {}, known_params={"a": "0"})
    assert batch.params == {"b": "2"}
    assert json.loads(batch.tags["engineworks.changed_params"]) == {"a": "1"}


# --- whose a run is


def test_this_process_is_alive_and_survives_the_trip_through_a_tag() -> None:
    owner = read_owner(current_owner().to_text())
    assert owner == current_owner()
    assert owner is not None
    assert not owner.is_dead()


def test_a_process_that_ended_is_dead_even_before_its_parent_looked() -> None:
    code = "from engineworks.tracking.owner import current_owner; print(current_owner().to_text(), flush=True); input()"
    child = subprocess.Popen(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    owner = read_owner(child.stdout.readline())
    assert owner is not None
    assert not owner.is_dead()
    child.kill()
    deadline = time.monotonic() + 5
    while not owner.is_dead() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert owner.is_dead()  # a zombie until here
    child.wait()
    assert owner.is_dead()


@pytest.mark.parametrize(
    ("change", "dead"),
    [
        ({"started": "1"}, True),
        ({"boot": "another boot"}, True),
        ({"host": "another host"}, False),
        ({"pid_space": "another container", "started": "1"}, False),
    ],
)
def test_only_what_is_surely_dead_counts_as_dead(change: dict[str, str], dead: bool) -> None:
    here = current_owner()
    if not here.boot:
        pytest.skip("this system does not tell its boot id")
    owner = Owner(**({"host": here.host, "boot": here.boot, "pid_space": here.pid_space} | {"started": here.started} | change), pid=here.pid)  # fmt: skip
    assert owner.is_dead() is dead


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", '{"host": "a", "pid": "x"}'])
def test_a_tag_that_is_no_owner_is_none(text: str) -> None:
    assert read_owner(text) is None


# --- a build and its engines


def test_a_build_and_its_engines_are_recorded_whole(tracking: Tracking, tmp_path: Path) -> None:
    engine = tmp_path / "engine"
    engine.write_bytes(b"plan" * 1000)
    with tracking.start_build("whole", "key-whole", {"commit": "abc"}, {"mode": "full"}) as build:
        run_id = build.record_engine(
            EngineRecord(
                id="whole/fp16/cpu",
                params={"precision": "fp16", "notes": "n" * 7000},
                metrics={"latency_ms_p50": 1.5, "cosine": math.nan},
                tags={"verdict": "pass"},
                texts={"sidecar.json": "{}", "logs/build.txt": "lone surrogate \udc80"},
                files={"engine/engine": engine},
                engine_digest="d" * 64,
                started_at=1_700_000_000.0,
            )
        )
        build.finish(metrics={"engines": 1}, tags={"verdict": "pass"}, texts={"summary.md": "# ok"})
    run = tracking.get_run(run_id)
    assert (run.engine, run.recipe, run.status, run.name) == ("whole/fp16/cpu", "whole", "FINISHED", "whole/fp16/cpu")
    assert run.parent_run_id == build.run_id
    assert run.metrics == {"latency_ms_p50": 1.5}
    assert run.started_at == 1_700_000_000.0
    assert run.ended_at is not None
    assert json.loads(run.tags["nonfinite_metrics"]) == ["cosine"]
    assert run.tags["engineworks.engine_run"] == run_id
    assert json.loads(tracking.read_text(run_id, LONG_VALUES))["params"]["notes"] == "n" * 7000
    assert tracking.read_text(run_id, "logs/build.txt") == "lone surrogate \\udc80"
    assert tracking.read_text(run_id, "engine/engine") == "plan" * 1000
    parent = tracking.get_run(build.run_id)
    assert (parent.name.split()[0], parent.status, parent.params) == ("whole", "FINISHED", {"mode": "full"})
    assert parent.tags["commit"] == "abc"
    assert parent.metrics == {"engines": 1.0}
    assert tracking.read_text(build.run_id, "summary.md") == "# ok"
    assert [r.run_id for r in tracking.find_runs(build_key="key-whole")] == [build.run_id]
    assert {r.run_id for r in tracking.find_runs(recipe="whole")} == {build.run_id, run_id}
    assert len(tracking.find_runs(recipe="whole", limit=1)) == 1


def finished(tracking: Tracking, recipe: str, key: str, at: float) -> str:
    """A finished build that began at this time."""
    run = tracking.open_waiting(f"{recipe}-{key}-{at}", "", recipe, key, "", at)
    run.finish()
    return run.run_id


def test_finished_builds_are_known_by_name_or_by_time_and_the_newest_of_a_key_counts(
    tracking: Tracking, monkeypatch: pytest.MonkeyPatch
) -> None:
    from engineworks.tracking import runs

    old, other = finished(tracking, "seen", "k1", 1e9), finished(tracking, "seen", "k2", 1e9)
    newer = finished(tracking, "seen", "k2", 3e9)
    finished(tracking, "unnamed", "k3", 1e9)
    with tracking.start_build("running", "k4", {}, {}) as running:
        monkeypatch.setattr(runs, "NAMED_AT_ONCE", 2)
        named = [old, other, running.run_id, "0" * 32, "waiting-1"]
        assert tracking.finished_builds(named, 2.9e9) == {("seen", "k1"): old, ("seen", "k2"): newer}
        assert tracking.finished_builds([], 2.9e9) == {("seen", "k2"): newer}
        assert tracking.finished_builds([other], 3.1e9) == {("seen", "k2"): other}
    tracking._connect().client.delete_run(newer)
    assert tracking.finished_builds([other, newer], 2.9e9) == {("seen", "k2"): other}


def test_where_too_much_was_built_since_nothing_is_known(tracking: Tracking, monkeypatch: pytest.MonkeyPatch) -> None:
    from engineworks.tracking import runs

    first, _ = finished(tracking, "busy", "k1", 4e9), finished(tracking, "busy", "k2", 4e9)
    monkeypatch.setattr(runs, "MOST_LATER", 2)
    assert len(tracking.finished_builds([first], 3.9e9)) == 2
    monkeypatch.setattr(runs, "MOST_LATER", 1)
    assert tracking.finished_builds([first], 3.9e9) == {}


def test_a_series_is_recorded_by_step(tracking: Tracking) -> None:
    from mlflow import MlflowClient

    with tracking.start_build("swept", "key-swept", {}, {}) as build:
        run_id = build.record_engine(EngineRecord("swept/fp16/cpu", series={"sweep_memory_mib": {1: 10.0, 8: 30.0}}))
    history = MlflowClient(tracking_uri=tracking.uri).get_metric_history(run_id, "sweep_memory_mib")
    assert sorted((m.step, m.value) for m in history) == [(1, 10.0), (8, 30.0)]


def test_a_failed_engine_is_recorded_as_failed_with_its_log(tracking: Tracking) -> None:
    with tracking.start_build("broken", "key-broken", {}, {}) as build:
        run_id = build.record_engine(
            EngineRecord(
                id="broken/int8/h100",
                status="FAILED",
                tags={"verdict": "failed", "engineworks.error": "the builder refused"},
                texts={"log.txt": "[E] unsupported"},
            )
        )
    assert tracking.get_run(run_id).status == "FAILED"
    assert tracking.read_text(run_id, "log.txt") == "[E] unsupported"
    assert tracking.get_run(build.run_id).status == "FINISHED"


class CancelledByPrefect(BaseException):
    """As `prefect.exceptions.TerminationSignal`, which is no `Exception` either."""


@pytest.mark.parametrize("error", [KeyboardInterrupt(), CancelledByPrefect(), Interrupted("stopped by the user")])
def test_an_interrupted_build_ends_as_killed(tracking: Tracking, error: BaseException) -> None:
    build = tracking.start_build("stopped", f"key-{type(error).__name__}", {}, {})
    with pytest.raises(type(error)), build:
        raise error
    assert tracking.get_run(build.run_id).status == "KILLED"


def test_a_build_interrupted_while_it_starts_ends_as_killed(
    tracking: Tracking, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("engineworks.tracking.build_run.BuildRun.log", interrupt)
        with pytest.raises(KeyboardInterrupt):
            tracking.start_build("early", "key-early", {}, {})
    assert [run.status for run in tracking.find_runs(build_key="key-early")] == ["KILLED"]


def test_an_error_ends_the_build_as_failed_and_its_message_and_log_are_kept(tracking: Tracking) -> None:
    build = tracking.start_build("raises", "key-raises", {}, {})
    with pytest.raises(BuildError), build:
        raise BuildError("no kernel for Resize", log="line 1\nline 2")
    run = tracking.get_run(build.run_id)
    assert (run.status, run.tags["engineworks.error"]) == ("FAILED", "no kernel for Resize")
    assert tracking.read_text(build.run_id, "log.txt") == "line 1\nline 2"


def test_what_ended_the_build_is_raised_even_when_its_end_can_not_be_recorded(
    tracking: Tracking, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = tracking.start_build("lost", "key-lost", {}, {})

    def refuse(*_: object, **__: object) -> None:
        raise TrackingError("the server is gone")

    monkeypatch.setattr(build, "finish", refuse)
    with pytest.raises(BuildError) as caught, build:
        raise BuildError("no kernel")
    assert "the server is gone" in caught.value.__notes__[0]


def test_an_engine_recorded_again_goes_into_the_run_it_has(tracking: Tracking, tmp_path: Path) -> None:
    engine = tmp_path / "engine"
    engine.write_bytes(b"first")
    engine.chmod(0o444)
    with tracking.start_build("again", "key-again", {}, {}) as build:
        first = build.record_engine(
            EngineRecord("again/fp32/cpu", params={"a": "1"}, files={"e/engine": engine}, engine_digest="again-1")
        )
        engine.chmod(0o644)
        engine.write_bytes(b"second")
        engine.chmod(0o444)
        second = build.record_engine(
            EngineRecord(
                "again/fp32/cpu", "FAILED", params={"a": "2"}, files={"e/engine": engine}, engine_digest="again-2"
            )
        )
    assert first == second
    assert children_of(tracking, build.run_id) == {"again/fp32/cpu": "FAILED"}
    assert tracking.get_run(first).params == {"a": "1"}
    assert tracking.read_text(first, "e/engine") == "second"


def test_an_engine_of_a_known_digest_is_not_copied_unless_its_holder_is_gone(
    tracking: Tracking, tmp_path: Path
) -> None:
    engine = tmp_path / "engine"
    engine.write_bytes(b"same bytes")

    def record(key: str) -> str:
        with tracking.start_build("dedupe", key, {}, {}) as build:
            return build.record_engine(
                EngineRecord("dedupe/fp32/cpu", files={"engine/engine": engine}, engine_digest="same-digest")
            )

    holder, second = record("dedupe-1"), record("dedupe-2")
    assert tracking.get_run(second).tags["engineworks.engine_run"] == holder
    with pytest.raises(TrackingError):
        tracking.read_text(second, "engine/engine")
    delete_run(tracking, holder)
    third = record("dedupe-3")
    assert tracking.get_run(third).tags["engineworks.engine_run"] == third
    assert tracking.read_text(third, "engine/engine") == "same bytes"


def test_a_holder_whose_file_was_cut_or_removed_holds_nothing(
    tracking: Tracking, artifacts: Path, tmp_path: Path
) -> None:
    engine = tmp_path / "engine"
    engine.write_bytes(b"0123456789")
    record = EngineRecord("cut/fp32/cpu", files={"engine": engine}, engine_digest="cut-digest")
    with tracking.start_build("cut", "cut-1", {}, {}) as build:
        holder = build.record_engine(record)
    (stored,) = artifacts.glob(f"mlartifacts/{holder}/artifacts/engine")
    stored.write_bytes(b"01234")
    with tracking.start_build("cut", "cut-2", {}, {}) as build:
        second = build.record_engine(record)
    assert tracking.get_run(second).tags["engineworks.engine_run"] == second


def test_an_engine_file_that_is_not_there_is_told_by_its_path(tracking: Tracking, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    for digest in ("some-digest", None):
        with pytest.raises(TrackingError, match=str(gone)), tracking.start_build("gone", "key", {}, {}) as build:
            build.record_engine(EngineRecord("gone/fp32/cpu", files={"engine": gone}, engine_digest=digest))
        assert children_of(tracking, build.run_id) == {"gone/fp32/cpu": "KILLED"}


@pytest.mark.parametrize("path", ["../escape.txt", "/etc/escape.txt", ""])
def test_an_artifact_path_that_leaves_its_run_is_refused(tracking: Tracking, path: str) -> None:
    with tracking.start_build("escape", f"escape-{path}", {}, {}) as build, pytest.raises(TrackingError, match="stay"):
        build.log(texts={path: "x"})


def test_keys_in_use_are_those_of_runs_that_are_not_deleted(tracking: Tracking) -> None:
    many = tuple(f"{n:064x}" for n in range(200))
    with tracking.start_build("keys", "key-keys", {}, {}, store_keys=["of-the-plan"]) as build:
        build.record_engine(EngineRecord("keys/fp32/cpu", store_keys=many))
        gone = build.record_engine(EngineRecord("keys/fp16/cpu", store_keys=("of-a-deleted-run",)))
    assert open_existing(tracking.uri).keys_in_use() >= {*many, "of-the-plan", "of-a-deleted-run"}
    delete_run(tracking, gone)
    assert "of-a-deleted-run" not in open_existing(tracking.uri).keys_in_use()


def test_two_threads_record_at_once(tracking: Tracking) -> None:
    failures: list[Exception] = []
    with tracking.start_build("threads", "key-threads", {}, {}) as build:

        def record(precision: str) -> None:
            try:
                for n in range(5):
                    build.record_engine(EngineRecord(f"threads/{precision}/t{n}", metrics={"n": n}, texts={"a": "b"}))
            except TrackingError as error:
                failures.append(error)

        threads = [threading.Thread(target=record, args=(p,)) for p in ("fp32", "fp16")]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert failures == []
    assert len(children_of(tracking, build.run_id)) == 10


# --- processes

KILLED_BUILD = """
import sys, time
from pathlib import Path
from engineworks.tracking.records import EngineRecord
from engineworks.tracking.runs import open_tracking
from engineworks.tracking.connection import Connection
from engineworks.tracking.file_connection import FileConnection
build = open_tracking(Path(sys.argv[1])).start_build("killed", "key-killed", {}, {"mode": "full"})
build.record_engine(EngineRecord("killed/fp32/cpu", params={"a": "1"}))
def hang(*_, **__): print("half-way", flush=True); time.sleep(60)
Connection.log = FileConnection.log = hang
build.record_engine(EngineRecord("killed/fp16/cpu"))
"""


def test_a_build_that_was_killed_goes_on_in_its_own_runs(tracking: Tracking, artifacts: Path) -> None:
    child = python(KILLED_BUILD, artifacts)
    assert child.stdout is not None
    assert child.stderr is not None
    assert child.stdout.readline() == "half-way\n", child.stderr.read()
    (old,) = tracking.find_runs(build_key="key-killed")
    assert children_of(tracking, old.run_id) == {"killed/fp32/cpu": "FINISHED", "killed/fp16/cpu": "RUNNING"}
    child.send_signal(signal.SIGKILL)
    child.communicate()
    with tracking.start_build("killed", "key-killed", {}, {"mode": "full"}) as build:
        assert build.resumed
        assert build.run_id == old.run_id
        for precision in ("fp32", "fp16", "int8"):
            build.record_engine(EngineRecord(f"killed/{precision}/cpu", params={"a": "1"}))
    assert [run.status for run in tracking.find_runs(build_key="key-killed")] == ["FINISHED"]
    assert children_of(tracking, build.run_id) == dict.fromkeys(
        ("killed/fp32/cpu", "killed/fp16/cpu", "killed/int8/cpu"), "FINISHED"
    )
    with tracking.start_build("killed", "key-killed", {}, {}) as after:
        assert after.run_id != old.run_id


def test_a_build_that_still_runs_is_left_alone(tracking: Tracking) -> None:
    with (
        tracking.start_build("alive", "key-alive", {}, {}) as one,
        tracking.start_build("alive", "key-alive", {}, {}) as two,
    ):
        assert one.run_id != two.run_id


FRESH_BUILD = """
import sys
from pathlib import Path
from engineworks.tracking.records import EngineRecord
from engineworks.tracking.runs import open_tracking
with open_tracking(Path(sys.argv[1])).start_build("fresh", sys.argv[2], {}, {}) as build:
    build.record_engine(EngineRecord("fresh/fp32/cpu", metrics={"a": 1.0}))
"""


def test_four_processes_on_a_fresh_database_all_record_and_print_nothing(tmp_path: Path) -> None:
    running = [python(FRESH_BUILD, tmp_path / "artifacts", f"key-{n}") for n in range(4)]
    assert [(*child.communicate(), child.returncode) for child in running] == [("", "", 0)] * 4
    runs = open_tracking(tmp_path / "artifacts").find_runs(kind="build")
    assert sorted((run.build_key, run.status) for run in runs) == [(f"key-{n}", "FINISHED") for n in range(4)]
    names = {path.name for path in (tmp_path / "artifacts").iterdir()}
    assert names <= {"mlflow.db", "mlflow.db.lock", "mlartifacts"}


def test_what_a_killed_process_left_of_a_fresh_database_does_no_harm(tmp_path: Path) -> None:
    (tmp_path / ".mlflow.db.partial").write_text("half of a database")
    assert open_tracking(tmp_path).find_runs() == []
    assert not (tmp_path / ".mlflow.db.partial").exists()


def test_recording_a_build_in_a_fresh_file_does_not_import_mlflow(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from engineworks.tracking.runs import open_tracking\n"
        f"tracking = open_tracking(Path({str(tmp_path)!r})); tracking.ui_hint()\n"
        "with tracking.start_build('r', 'k', {}, {'a': '1'}) as run: run.log(metrics={'m': 1.0}, texts={'t.txt': 't'})\n"
        "assert tracking.read_text(tracking.find_runs(recipe='r')[0].run_id, 't.txt') == 't'\n"
        "assert tracking.champions() == [] and tracking.last_night_text('n') is None\n"
        "assert not {'mlflow', 'sqlalchemy', 'alembic'} & set(sys.modules)"
    )
    child = python(code)
    assert (child.communicate(), child.returncode) == (("", ""), 0)


def test_nobody_is_phoned(tracking: Tracking) -> None:
    prepare_environment()
    tracking.find_runs()
    from mlflow.telemetry.utils import is_telemetry_disabled

    assert is_telemetry_disabled()
    assert os.environ["DO_NOT_TRACK"] == "true"


def test_prestart_returns_at_once_and_its_error_waits_for_the_first_use(tmp_path: Path) -> None:
    tracking = open_tracking(tmp_path, f"http://127.0.0.1:{free_port()}")
    begin = time.perf_counter()
    tracking.prestart()
    assert time.perf_counter() - begin < 0.1
    with pytest.raises(TrackingError, match="does not answer"):
        tracking.find_runs()


# --- stores that cannot be used


@pytest.mark.parametrize("scheme", ["http", "postgresql"])
def test_a_store_that_does_not_answer_is_told_in_seconds_and_without_its_password(tmp_path: Path, scheme: str) -> None:
    port = free_port()
    begin = time.monotonic()
    with pytest.raises(TrackingError) as caught:
        open_tracking(tmp_path, f"{scheme}://user:secret@127.0.0.1:{port}").find_runs()
    assert time.monotonic() - begin < 10
    assert str(caught.value) == (
        f"MLflow does not answer at {scheme}://user@127.0.0.1:{port}: Connection refused; "
        "start it, or unset MLFLOW_TRACKING_URI to use the SQLite file under artifacts"
    )


def test_a_store_that_never_answers_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engineworks.tracking.opening.PROBE_S", 0.5)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(1)
        begin = time.monotonic()
        with pytest.raises(TrackingError, match="does not answer"):
            open_tracking(tmp_path, f"http://127.0.0.1:{silent.getsockname()[1]}").find_runs()
        assert time.monotonic() - begin < 5


def test_a_file_that_is_no_database_is_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("this is not a database, but long enough to be looked at as one " * 20)
    begin = time.monotonic()
    with pytest.raises(TrackingError, match=r"mlflow\.db cannot be read: file is not a database; move it away"):
        open_tracking(tmp_path).find_runs()
    assert time.monotonic() - begin < 5


def test_a_database_of_another_mlflow_is_told_in_one_line(artifacts: Path, tracking: Tracking, tmp_path: Path) -> None:
    tracking.find_runs()
    shutil.copy(artifacts / "mlflow.db", tmp_path)
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        database.execute("UPDATE alembic_version SET version_num = 'of the past'")
    with pytest.raises(TrackingError, match="out-of-date database schema") as caught:
        open_tracking(tmp_path).find_runs()
    assert "\n" not in str(caught.value)


def test_a_database_that_moved_away_from_its_artifacts_is_told(tmp_path: Path) -> None:
    open_tracking(tmp_path / "old").find_runs()
    (tmp_path / "old").rename(tmp_path / "new")
    with pytest.raises(TrackingError, match="does not exist here"):
        open_tracking(tmp_path / "new").find_runs()


def test_a_folder_that_can_not_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TrackingError, match=r"cannot be opened: .*Not a directory"):
        open_tracking(tmp_path / "file" / "artifacts").find_runs()


def test_an_unknown_run_is_told(tracking: Tracking) -> None:
    with pytest.raises(TrackingError, match="run 0123 cannot be read"):
        tracking.get_run("0123")


# --- a server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An MLflow server on loopback, started by the very command that `ui_hint` gives, on a new database."""
    pytest.importorskip("flask", reason="the server needs all of mlflow")
    folder = tmp_path_factory.mktemp("server")
    port = free_port()
    local = open_tracking(folder)
    with local.start_build("local", "key-local", {}, {}) as build:
        build.log(texts={"a.txt": "hello"})
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    process = subprocess.Popen(
        local.ui_hint(port),
        shell=True,
        cwd=folder,
        env=os.environ | {"PATH": path},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        wait_for(f"http://127.0.0.1:{port}/health", process)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.mark.slow
def test_the_page_of_ui_hint_opens_and_shows_what_was_recorded(server: str) -> None:
    with urllib.request.urlopen(f"{server}/") as page:
        assert page.status == 200
        assert b"<html" in page.read()
    (run,) = open_tracking(Path("unused"), server).find_runs(build_key="key-local")
    with urllib.request.urlopen(f"{server}/get-artifact?path=a.txt&run_uuid={run.run_id}") as text:
        assert text.read() == b"hello"


@pytest.mark.slow
def test_a_server_records_what_the_file_does(server: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    engine = tmp_path / "engine"
    engine.write_bytes(b"plan" * 1000)
    tracking = open_tracking(tmp_path, server, experiment="over-rest")
    record = EngineRecord(
        id="rest/fp32/cpu",
        params={f"p{n}": "x" for n in range(150)},
        metrics={"a": 1.0, "b": math.nan},
        texts={"logs/log.txt": "hello"},
        files={"engine/engine": engine},
        engine_digest="rest-digest",
        store_keys=("rest-key",),
    )
    with tracking.start_build("rest", "key-rest", {}, {}) as build:
        first = build.record_engine(record)
    with tracking.start_build("rest", "key-rest-2", {}, {}) as build:
        second = build.record_engine(record)
    run = tracking.get_run(first)
    assert (len(run.params), run.metrics, run.status) == (150, {"a": 1.0}, "FINISHED")
    assert tracking.read_text(first, "logs/log.txt") == "hello"
    assert tracking.read_text(first, "engine/engine") == "plan" * 1000
    assert tracking.get_run(second).tags["engineworks.engine_run"] == first
    assert "rest-key" in open_existing(tracking.uri).keys_in_use()
    assert children_of(tracking, build.run_id) == {"rest/fp32/cpu": "FINISHED"}
    assert capfd.readouterr() == ("", "")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        try:
            urllib.request.urlopen(url, timeout=2).close()
            return
        except OSError:
            time.sleep(0.2)
    pytest.fail("the MLflow server did not start")


def delete_run(tracking: Tracking, run_id: str) -> None:
    from mlflow.tracking import MlflowClient

    MlflowClient(tracking_uri=tracking.uri).delete_run(run_id)
