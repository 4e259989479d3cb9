"""Builds run in processes of their own, as they do for a user; the database is read after they have ended."""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from engineworks.errors import StepError
from engineworks.report.results_text import _print_pages
from engineworks.settings import Settings
from flows import local_prefect_server
from flows.local_prefect import LocalPrefect, check_answers
from flows.local_prefect_child import ServerChild
from flows.local_prefect_server import LazyModule

ROOT = Path(__file__).parents[2]
LIMIT_S = 120

BUILD = """
import sys, time
from pathlib import Path
from flows.local_prefect import prefect_api

home, tasks, pause_s = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
with prefect_api(home) as api:
    from prefect import flow, get_run_logger, task

    @task
    def step(number):
        get_run_logger().info("step %s", number)

    @flow
    def build():
        for number in range(tasks):
            step(number)
        print("steps done", flush=True)
        time.sleep(pause_s)

    api.wait_ready()
    print("ready", flush=True)
    build()
"""


def run_build(home: Path, tasks: int, pause_s: float = 0, **environment: str) -> subprocess.Popen[str]:
    """A build of `tasks` task runs; its HOME is two above `home`, so that what Prefect writes there is seen."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    return subprocess.Popen(
        [sys.executable, "-c", BUILD, str(home), str(tasks), str(pause_s)],
        env={**clean, "PYTHONPATH": str(ROOT), "HOME": str(home.parents[1]), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def read_until(build: subprocess.Popen[str], start: str) -> str:
    assert build.stdout is not None
    for line in build.stdout:
        if line.startswith(start):
            return line
    raise AssertionError(f"the build ended before it said {start!r}: {build.communicate()[1]}")


def children(pid: int) -> set[int]:
    """Processes that this one has started."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            if int(stat.read_text(errors="replace").rpartition(")")[2].split()[1]) == pid:
                found.add(int(stat.parent.name))
    return found


def server_pid(build: subprocess.Popen[str]) -> int:
    """The server of a build whose flow begins: its only child."""
    read_until(build, "ready")
    (pid,) = children(build.pid)
    return pid


def lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def wait_until_gone(pid: int) -> None:
    limit = time.monotonic() + 30
    while lives(pid):
        assert time.monotonic() < limit, "the server lives on"
        time.sleep(0.05)


def count(home: Path, table: str) -> dict[str, int]:
    """How many rows there are in each state."""
    with closing(sqlite3.connect(home / "prefect.db")) as connection:
        return dict(connection.execute(f"SELECT state_name, count(*) FROM {table} GROUP BY 1").fetchall())


def logged(home: Path) -> int:
    with closing(sqlite3.connect(home / "prefect.db")) as connection:
        found = connection.execute("SELECT count(*) FROM log WHERE message LIKE 'step %'").fetchone()
    return int(found[0])


@pytest.fixture(scope="module")
def server(api: None) -> dict[str, str]:
    """The settings that lead to another server."""
    return {name: os.environ[name] for name in ("PREFECT_API_URL", "PREFECT_API_AUTH_STRING", "PREFECT_HOME")}


@pytest.fixture(autouse=True)
def _own_server(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("PREFECT_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "artifacts" / "prefect"


def test_two_builds_at_once_record_every_task_run_in_a_fresh_database_and_leave_nothing_after_ctrl_c_too(
    home: Path,
) -> None:
    """The second is interrupted after its tasks."""
    builds = [run_build(home, tasks=10, pause_s=pause_s) for pause_s in (0, 60)]
    servers = [server_pid(build) for build in builds]
    assert (*builds[0].communicate(timeout=LIMIT_S), builds[0].returncode) == ("steps done\n", "", 0)
    read_until(builds[1], "steps done")
    os.killpg(builds[1].pid, signal.SIGINT)
    builds[1].communicate(timeout=LIMIT_S)
    assert builds[1].returncode == -signal.SIGINT
    assert count(home, "flow_run") == {"Completed": 1, "Crashed": 1}
    assert count(home, "task_run") == {"Completed": 20}
    assert logged(home) == 20
    assert not any(lives(pid) for pid in servers)
    log = (home / "server.log").read_text()
    errors = [line for line in log.splitlines() if "| ERROR" in line]
    # On a slow host Prefect 3.9 reports a write that its own stop interrupts; it writes the same events afterwards.
    assert all(line.endswith(", 0 dropped)") for line in errors)
    assert bool(errors) == bool(log)
    assert not (home.parents[1] / ".prefect").exists()


STRANGER = """
import os, sys
from pathlib import Path
import httpx
from flows.local_prefect import prefect_api

with prefect_api(Path(sys.argv[1])) as api:
    url = api.wait_ready()
    own = tuple(os.environ["PREFECT_API_AUTH_STRING"].split(":"))
    for auth in (None, ("engineworks", "guess"), own):
        print(*(httpx.post(f"{url}/{path}/filter", json={}, auth=auth).status_code for path in ("flows", "variables")))
"""
"""The second of the paths is none of those that our flows use."""


def test_the_server_asks_for_the_password_of_its_build(home: Path) -> None:
    """A forked one too: a process without threads forks it."""
    command = [sys.executable, "-c", STRANGER, str(home)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    answers = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=LIMIT_S)
    assert answers.stdout.splitlines() == ["401 401", "401 401", "200 200"]


FIRST_STATE = """
import asyncio, os, sys
from pathlib import Path
import httpx
from flows import local_prefect_server as local

home = os.environ["PREFECT_HOME"] = sys.argv[1]
os.environ["PREFECT_SERVER_API_AUTH_STRING"] = "a:b"
local.must_migrate(Path(home, "prefect.db"))
app = local.create_app(migrate=False)

async def main():
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://local/api", auth=("a", "b")) as client:
        flow = (await client.post("/flows/", json={"name": "build"})).json()
        run = {"flow_id": flow["id"], "state": {"type": "PENDING"}}
        made = (await client.post("/flow_runs/", json=run)).json()
        print(made["state"]["type"], "prefect.server.api.deployments" in sys.modules)
        others = await client.post("/variables/filter", json={})
        print(others.status_code, "prefect.server.api.deployments" in sys.modules)

asyncio.run(main())
"""


def test_the_server_imports_other_routes_only_for_requests_of_them(tmp_path: Path) -> None:
    command = [sys.executable, "-c", FIRST_STATE, str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    answers = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=LIMIT_S)
    assert answers.stdout.splitlines() == ["PENDING False", "200 True"]


def test_a_lazy_module_is_loaded_once_it_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "of_a_vendor.py").write_text("OTHER = 5\ndef double(x): return 2 * x\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    lazy = LazyModule("of_a_vendor", "double")
    monkeypatch.setitem(sys.modules, "of_a_vendor", lazy)
    double = importlib.import_module("of_a_vendor").double
    assert sys.modules["of_a_vendor"] is lazy
    assert double(2) == 4
    loaded = sys.modules["of_a_vendor"]
    assert loaded is not lazy
    assert (lazy.OTHER, double(3)) == (5, 6)
    assert sys.modules["of_a_vendor"] is loaded
    with pytest.raises(AttributeError, match="NONE"):
        _ = lazy.NONE


def test_ctrl_c_while_the_server_starts_leaves_none(home: Path) -> None:
    api, before = LocalPrefect(home), children(os.getpid())
    api.start()
    api.load()
    (pid,) = children(os.getpid()) - before
    api.stop()
    assert not lives(pid)


@pytest.mark.slow
def test_a_killed_build_leaves_no_server_and_a_database_that_works(home: Path) -> None:
    build = run_build(home, tasks=3, pause_s=60)
    pid = server_pid(build)
    read_until(build, "steps done")
    os.killpg(build.pid, signal.SIGKILL)
    build.communicate(timeout=LIMIT_S)
    wait_until_gone(pid)
    second = run_build(home, tasks=3)
    assert second.communicate(timeout=LIMIT_S)[1] == ""
    assert count(home, "flow_run") == {"Running": 1, "Completed": 1}


@pytest.mark.xdist_group("flows")  # their server
def test_a_server_of_the_users_own_is_used_and_none_started(home: Path, server: dict[str, str]) -> None:
    build = run_build(home, 5, 1, **{name: value for name, value in server.items() if name != "PREFECT_HOME"})
    read_until(build, "ready")
    assert children(build.pid) == set()
    assert build.communicate(timeout=LIMIT_S) == ("steps done\n", "")
    assert build.returncode == 0
    assert not home.exists()
    with closing(sqlite3.connect(Path(server["PREFECT_HOME"]) / "prefect.db")) as connection:
        states = connection.execute(
            "SELECT r.state_name FROM flow_run r JOIN flow f ON r.flow_id = f.id WHERE f.name = 'build'"
        )
        assert states.fetchall() == [("Completed",)]


def test_a_server_of_the_users_own_that_does_not_answer_is_named() -> None:
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with socket.create_server(("127.0.0.1", 0)) as unused:
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/api"
    with temporary_settings({PREFECT_API_URL: url}), pytest.raises(StepError) as error:
        check_answers(url)
    assert error.value.message.startswith(f"no Prefect API answers at PREFECT_API_URL={url}")


def started(home: Path) -> ServerChild:
    child = ServerChild(home)
    child.start(fork=False)
    return child


def test_a_server_that_dies_is_an_error_and_not_a_silent_gap(tmp_path: Path) -> None:
    child = started(tmp_path)
    child.wait_ready(LIMIT_S)
    child._child.kill()
    child._child.wait(10)
    with pytest.raises(StepError, match=r"ended \(exit code -9\) in the middle of the build"):
        child.stop()


def test_a_damaged_database_is_named_with_the_servers_own_words(tmp_path: Path) -> None:
    (tmp_path / "prefect.db").write_bytes(b"no database" * 1000)
    child = started(tmp_path)
    with pytest.raises(StepError, match=r"Prefect's server ended while it was starting in .*prefect\.db") as error:
        child.wait_ready(LIMIT_S)
    assert "file is not a database" in error.value.log
    child.stop()


def test_a_home_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StepError, match="cannot be started in this folder"):
        LocalPrefect(tmp_path / "file").start()


def test_the_environment_is_put_back(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_HOME", "/somewhere")
    monkeypatch.setenv("PREFECT_PROFILE", "mine")
    monkeypatch.setenv("NO_PROXY", "intranet")
    monkeypatch.delenv("no_proxy", raising=False)
    before = dict(os.environ)
    api = LocalPrefect(home)
    api.start()
    inside = dict(os.environ)
    api.stop()
    assert (inside["PREFECT_HOME"], inside["NO_PROXY"]) == (str(home), "intranet,127.0.0.1")
    assert "PREFECT_PROFILE" not in inside
    assert dict(os.environ) == before


def test_the_shipped_schema_serves_a_prefect_that_knows_its_revision_only(tmp_path: Path) -> None:
    schema = local_prefect_server.read_schema()
    assert schema is not None
    old, new = tmp_path / "old.db", tmp_path / "new.db"
    local_prefect_server.create_database(old, schema._replace(revision="of-another-time"))
    local_prefect_server.create_database(new, schema)
    assert not old.exists()
    assert local_prefect_server.is_at_head(new, schema)


def statements(schema: Path) -> list[list[str]]:
    """Their words, sorted: alembic writes constraints in any order, and tables in the order of its last copies."""
    return sorted(sorted(re.split(r"[\s,()]+", statement)) for statement in schema.read_text().split(";\n"))


@pytest.mark.slow
def test_the_shipped_schema_is_what_the_migrations_make(tmp_path: Path) -> None:
    """If it fails: `make prefect-schema`."""
    made = tmp_path / "schema.sql"
    subprocess.run([sys.executable, "-P", local_prefect_server.__file__, "--write-schema", str(made)], check=True)
    assert statements(made) == statements(local_prefect_server.SCHEMA_FILE)


@pytest.mark.slow
def test_a_prefect_without_the_schema_file_migrates_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = tmp_path / "local_prefect_server.py"
    shutil.copy(local_prefect_server.__file__, copy)
    monkeypatch.setattr(local_prefect_server, "__file__", str(copy))
    child = started(tmp_path / "home")
    child.wait_ready(LIMIT_S)
    child.stop()
    assert count(tmp_path / "home", "flow_run") == {}


@pytest.mark.slow
def test_three_hundred_task_runs_of_each_of_three_builds_at_once(home: Path) -> None:
    builds = [run_build(home, tasks=300) for _ in range(3)]
    ends = [build.communicate(timeout=2 * LIMIT_S) for build in builds]
    assert [build.returncode for build in builds] == [0, 0, 0], ends
    assert count(home, "task_run") == {"Completed": 900}


@pytest.mark.slow
def test_the_hint_opens_the_pages(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_build(home, tasks=2).communicate(timeout=LIMIT_S)[1] == ""
    _print_pages(Settings(home.parent, str(home.parent / "store")))
    command = (
        capsys.readouterr().out.replace("\n", " ").partition("Prefect's pages (http://127.0.0.1:4200): ")[2].strip()
    )
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    pages = subprocess.Popen(["bash", "-c", f"{command} --port {port}"], env={**os.environ, "PATH": path},
                             start_new_session=True, stdout=subprocess.DEVNULL)  # fmt: skip
    try:
        assert "<html" in fetch(f"http://127.0.0.1:{port}/")
    finally:
        os.killpg(pages.pid, signal.SIGTERM)
        pages.wait(30)


def fetch(url: str) -> str:
    import httpx

    limit = time.monotonic() + LIMIT_S
    while True:
        try:
            return httpx.get(url, trust_env=False).raise_for_status().text
        except httpx.ConnectError:
            assert time.monotonic() < limit
            time.sleep(0.2)
