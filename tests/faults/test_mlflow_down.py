"""MLflow is down, or goes down in the middle: the build goes on, its records wait, and each is sent once."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from pathlib import Path

import pytest
from by_hand import by_hand

import engineworks.errors
from engineworks.cli import run_command
from engineworks.commands.garbage import collect_garbage
from engineworks.errors import TrackingError
from engineworks.settings import Settings
from engineworks.store.store import Store
from engineworks.tracking import spool
from engineworks.tracking.records import EngineRecord
from engineworks.tracking.runs import Tracking, open_tracking
from engineworks.tracking.sending import send_waiting
from engineworks.tracking.spooled import SpooledRun, start_spooled

pytestmark = pytest.mark.xdist_group("docs")  # their server
PROGRAM = Path(sys.executable).parent / "engineworks"
ROOT = Path(engineworks.errors.__file__).parents[1]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def dead(artifacts: Path) -> Tracking:
    """An MLflow server that does not answer."""
    return open_tracking(artifacts, f"http://127.0.0.1:{free_port()}")


def start(artifacts: Path, tracking: Tracking, key: str = "key") -> SpooledRun:
    return start_spooled(tracking, artifacts, "tiny", key, {"from": "test"}, {"opset": "17"}, ["a" * 64])


def record(name: str, file: Path | None = None, metric: float = 0.5) -> EngineRecord:
    return EngineRecord(
        id=f"tiny/{name}/cpu", metrics={"cosine": metric, "bad": float("nan")}, texts={"log.txt": "hello"},
        files={f"engine/{file.name}": file} if file else {}, engine_digest=f"digest-{name}" if file else None,
        store_keys=("b" * 64,), series={"sweep": {1: 1.0, 8: 2.0}},
    )  # fmt: skip


def build(artifacts: Path, tracking: Tracking, key: str = "key", file: Path | None = None) -> SpooledRun:
    with start(artifacts, tracking, key) as run:
        run.record_engine(record("fp32", file))
        run.record_engine(record("int8"))
        run.finish(
            "FINISHED", metrics={"build_s": 3.0}, tags={"engineworks.verdict": "pass"}, texts={"plan.json": "{}"}
        )
    return run


def assert_recorded_once(artifacts: Path, run_id: str | None = None) -> None:
    """One parent run, one run per engine, every metric with one point."""
    tracking = open_tracking(artifacts)
    (parent,) = tracking.find_runs(kind="build")
    assert run_id in (None, parent.run_id)
    assert (parent.status, parent.params, parent.tags["from"]) == ("FINISHED", {"opset": "17"}, "test")
    assert tracking.read_text(parent.run_id, "plan.json") == "{}"
    engines = tracking.find_runs(kind="engine", parent_run_id=parent.run_id)
    assert sorted(str(e.engine) for e in engines) == ["tiny/fp32/cpu", "tiny/int8/cpu"]
    assert {e.status for e in engines} == {"FINISHED"}
    assert all(r.ended_at is not None and r.ended_at >= r.started_at for r in (parent, *engines))
    client = by_hand(tracking)
    for engine in engines:
        points = Counter((m.key, m.step) for k in engine.metrics for m in client.get_metric_history(engine.run_id, k))
        assert points == {("cosine", 0): 1, ("sweep", 1): 1, ("sweep", 8): 1}
    assert list(spool.read_all(artifacts)) == []


def test_records_wait_and_are_sent_once_with_their_own_times(tmp_path: Path) -> None:
    engine = tmp_path / "engine.plan"
    engine.write_bytes(b"plan")
    begin = time.time()
    run = build(tmp_path, dead(tmp_path), file=engine)
    end = time.time()
    assert run.run_id.startswith("waiting-")
    assert "the records of this build wait in " in run.warning
    assert "MLflow does not answer" in run.warning
    assert run.warning.count("\n") == 0
    tracking = open_tracking(tmp_path)
    time.sleep(0.1)
    sent = send_waiting(tracking, tmp_path)
    assert len(sent.builds) == 1
    assert send_waiting(tracking, tmp_path).builds == {}
    assert_recorded_once(tmp_path)
    (parent,) = tracking.find_runs(kind="build")
    assert parent.ended_at is not None
    assert begin - 0.01 <= parent.started_at <= parent.ended_at <= end + 0.01
    (fp32,) = tracking.find_runs(engine="tiny/fp32/cpu")
    assert tracking.read_text(fp32.run_id, "engine/engine.plan") == "plan"
    assert json.loads(fp32.tags["nonfinite_metrics"]) == ["bad"]


def test_the_next_build_sends_what_waits(tmp_path: Path) -> None:
    build(tmp_path, dead(tmp_path))
    second = build(tmp_path, open_tracking(tmp_path), "other")
    assert second.warning == ""
    assert {r.build_key for r in open_tracking(tmp_path).find_runs(kind="build")} == {"key", "other"}
    assert list(spool.read_all(tmp_path)) == []


def test_sending_fails_as_a_whole_while_mlflow_is_down_and_loses_nothing(tmp_path: Path) -> None:
    build(tmp_path, dead(tmp_path))
    with pytest.raises(TrackingError, match="MLflow does not answer"):
        send_waiting(dead(tmp_path), tmp_path)
    send_waiting(open_tracking(tmp_path), tmp_path)
    assert_recorded_once(tmp_path)


KILLED_SENDER = """
import os, signal, sys
from pathlib import Path
from engineworks.tracking.file_connection import FileConnection
from engineworks.tracking.runs import open_tracking
from engineworks.tracking.sending import send_waiting
method, left = sys.argv[2], int(sys.argv[3])
right = getattr(FileConnection, method)
def killed(*arguments, **options):
    global left
    value = right(*arguments, **options)
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return value
setattr(FileConnection, method, killed)
send_waiting(open_tracking(Path(sys.argv[1])), Path(sys.argv[1]))
"""


@pytest.mark.parametrize(("method", "count"), [
    pytest.param("create_run", 1, marks=pytest.mark.faults), ("log", 2),
    pytest.param("end_run", 1, marks=pytest.mark.faults),
])  # fmt: skip
def test_a_sender_that_is_killed_leaves_the_rest_to_the_next_and_nothing_is_sent_twice(
    tmp_path: Path, method: str, count: int
) -> None:
    build(tmp_path, dead(tmp_path))
    killed = subprocess.run(
        [sys.executable, "-c", KILLED_SENDER, str(tmp_path), method, str(count)],
        env=os.environ | {"PYTHONPATH": str(ROOT)}, check=False, timeout=100,
    )  # fmt: skip
    assert killed.returncode == -signal.SIGKILL
    send_waiting(open_tracking(tmp_path), tmp_path)
    assert_recorded_once(tmp_path)


KILLED_BUILD = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
import test_mlflow_down as t
run = t.start(Path(sys.argv[1]), t.dead(Path(sys.argv[1])))
run.record_engine(t.record("fp32"))
with open(next(Path(sys.argv[1], "spool").glob("*.jsonl")), "ab") as file:
    file.write(b'{"what": "engine", "record": {"id": "tiny/in')
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("mlflow", [pytest.param("is down again", marks=pytest.mark.faults), "is back"])
def test_a_build_that_was_killed_while_its_records_waited_goes_on_in_them(tmp_path: Path, mlflow: str) -> None:
    killed = subprocess.run(
        [sys.executable, "-c", KILLED_BUILD, str(tmp_path), str(Path(__file__).parent)],
        env=os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}, check=False, timeout=100,
    )  # fmt: skip
    assert killed.returncode == -signal.SIGKILL
    if mlflow == "is back":
        with start(tmp_path, open_tracking(tmp_path)) as run:
            run.record_engine(record("int8"))
            run.finish(texts={"plan.json": "{}"})
        assert run.warning == ""
    else:
        run = build(tmp_path, dead(tmp_path))
        assert len(list(spool.read_all(tmp_path))) == 1
        send_waiting(open_tracking(tmp_path), tmp_path)
    assert_recorded_once(tmp_path)


def test_garbage_collection_keeps_what_waiting_records_refer_to(tmp_path: Path) -> None:
    from engineworks.fingerprint import digest_of

    document = {"a": 1}
    key = digest_of(document)
    store = Store(tmp_path / "store")
    with store.writing(key, document, "tiny/build") as writing:
        (writing.folder / "engine.plan").write_bytes(b"plan")
    with start_spooled(dead(tmp_path), tmp_path, "tiny", "key", {}, {}, [key]):
        pass
    settings = Settings(tmp_path, str(tmp_path / "store"))
    with pytest.raises(TrackingError, match="there is no record of builds at"):
        collect_garbage(settings, keep_hours=0, dry_run=False)
    with start_spooled(open_tracking(tmp_path), tmp_path, "other", "other", {}, {}):
        pass
    freed = collect_garbage(settings, keep_hours=0, dry_run=False)
    assert (freed.artifacts, freed.kept) == (0, 1)


@pytest.mark.faults
def test_a_server_that_is_killed_in_the_middle_gets_the_rest_later_in_the_same_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("flask", reason="the server needs all of mlflow")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    port = free_port()
    with open_tracking(tmp_path).start_build("other", "other", {}, {}):
        pass  # makes the database
    url = f"http://127.0.0.1:{port}"
    server = serve(tmp_path, port)
    try:
        with start(tmp_path, open_tracking(tmp_path, url)) as run:
            run.record_engine(record("fp32"))
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()
            run.record_engine(record("int8"))
            assert run.warning
            run.finish("FINISHED", texts={"plan.json": "{}"})
        assert not run.run_id.startswith("waiting-")
        server = serve(tmp_path, port)
        again = Tracking(tmp_path, url, "engineworks")
        assert list(send_waiting(again, tmp_path).builds.values()) == [run.run_id]
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
    open_tracking(tmp_path)._connect().client.delete_run(open_tracking(tmp_path).find_runs(recipe="other")[0].run_id)
    assert_recorded_once(tmp_path, run.run_id)


def serve(artifacts: Path, port: int) -> subprocess.Popen[bytes]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    process = subprocess.Popen(
        f"{open_tracking(artifacts).ui_hint(port)} --workers 1", shell=True, cwd=artifacts,
        env=os.environ | {"PATH": path}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and process.poll() is None:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2).close()
            return process
        except OSError:
            time.sleep(0.2)
    raise AssertionError("the MLflow server did not start")


def test_a_whole_build_without_mlflow_ends_as_one_with_it_once_it_is_synced(
    small_repository: Path, prefect_server: dict[str, str],
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    down = f"http://127.0.0.1:{free_port()}"
    for name, value in prefect_server.items():
        monkeypatch.setenv(name, value)
    first = subprocess.run(
        [str(PROGRAM), "build", "recipes/tiny.yaml", "--json"], cwd=small_repository,
        env=os.environ | {"MLFLOW_TRACKING_URI": down}, capture_output=True, text=True, check=False, timeout=240,
    )  # fmt: skip
    assert first.returncode == 0, first.stderr
    result = json.loads(first.stdout)
    assert [w for w in result["warnings"] if "the records of this build wait" in w]
    assert result["run"].startswith("waiting-")
    assert "Traceback" not in first.stderr
    with monkeypatch.context() as without:
        without.setenv("MLFLOW_TRACKING_URI", down)
        assert run_command(["build", "recipes/tiny.yaml"]) == 0
        second = "".join(capsys.readouterr())
        assert second.count("the records of this build wait") == 1
        assert "0 steps run" in second
        assert run_command(["sync"]) == 4
    assert capsys.readouterr().err.count("MLflow does not answer") == 1
    assert run_command(["sync", "--json"]) == 0
    (run,) = json.loads(capsys.readouterr().out)["sent"].values()
    assert run_command(["sync"]) == 0
    assert "nothing waits" in capsys.readouterr().out
    assert run_command(["build", "recipes/tiny.yaml", "--json"]) == 0
    third = json.loads(capsys.readouterr().out)
    assert (third["run"], third["steps"]["run"], third["report"] is None) == (run, 0, False)
    tracking = open_tracking(small_repository / "artifacts")
    (parent,) = tracking.find_runs(kind="build")
    assert (parent.run_id, parent.status) == (run, "FINISHED")
    children = tracking.find_runs(kind="engine", parent_run_id=run)
    assert {c.name: c.status for c in children} == {"tiny/int8/cpu": "FINISHED"}


@pytest.mark.parametrize("what", ["the database is deleted", "an older one takes its place", "files are deleted"])
def test_what_mlflow_loses_in_the_middle_of_a_build_is_kept(tmp_path: Path, what: str) -> None:
    tracking = open_tracking(tmp_path)
    with start(tmp_path, tracking) as run:
        run.record_engine(record("fp32"))
        database = tmp_path / "mlflow.db"
        older = database.read_bytes()
        run.record_engine(record("int8"))
        if what == "files are deleted":
            for file in (tmp_path / "mlartifacts").rglob("log.txt"):
                file.unlink()
        else:
            database.unlink()
            if what == "an older one takes its place":
                database.write_bytes(older)
        run.finish(texts={"plan.json": "{}"})
    assert run.waits
    assert "wait in" in run.warning
    send_waiting(open_tracking(tmp_path), tmp_path)
    assert list(spool.read_all(tmp_path)) == []
    assert_recorded_once(tmp_path)
