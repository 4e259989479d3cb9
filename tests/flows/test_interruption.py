"""Builds that are stopped: Ctrl-C within 5 s, kill -9 at any moment; the next build ends as an undisturbed one does."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import SMALL_STEPS

from engineworks.cli import run_command
from engineworks.store.store import Store
from engineworks.tracking.runs import open_tracking

pytestmark = pytest.mark.xdist_group("docs")  # their server
PROGRAM = Path(sys.executable).parent / "engineworks"
BUILD = [str(PROGRAM), "build", "recipes/tiny.yaml", "--verbose"]

SLOW_METRIC = """
import pathlib, time

def slow(outputs, labels, inputs):
    pathlib.Path(__file__).with_name("begun").touch()
    time.sleep(600)
    return 1.0
"""


@pytest.fixture(autouse=True)
def _own_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """Builds that are stopped start their own server, not the one of other tests."""
    for name in [name for name in os.environ if name.startswith("PREFECT_")]:
        monkeypatch.delenv(name)


def start(repository: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        BUILD, cwd=repository, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def read_until(process: subprocess.Popen[str], word: str) -> None:
    assert process.stderr is not None
    for line in process.stderr:
        if word in line:
            return
    raise AssertionError(f"the build ended before '{word}'")


def group_members(group: int) -> list[int]:
    """Living processes of the group (zombies are dead)."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == group and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found


def wait_gone(group: int, seconds: float) -> float:
    begin = time.monotonic()
    while group_members(group):
        assert time.monotonic() - begin < seconds, "processes of the build are still there"
        time.sleep(0.05)
    return time.monotonic() - begin


@pytest.fixture
def build_again(
    prefect_server: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[[], dict[str, object]]:
    """Build in this process."""

    def build() -> dict[str, object]:
        for name, value in prefect_server.items():
            monkeypatch.setenv(name, value)
        code = run_command([*BUILD[1:-1], "--json"])
        said = capsys.readouterr()
        assert code == 0, said.err
        value: dict[str, object] = json.loads(said.out)
        return value

    return build


def assert_as_undisturbed(repository: Path, result: dict[str, object]) -> None:
    """What one whole build leaves: every step stored and sound, one parent run, one child per engine."""
    engines = result["engines"]
    assert isinstance(engines, list)
    assert {e["id"]: e["verdict"] for e in engines} == {"tiny/int8/cpu": "pass"}
    steps = result["steps"]
    assert isinstance(steps, dict)
    assert steps["run"] + steps["reused"] == SMALL_STEPS
    store = Store(repository / "artifacts" / "store")
    assert sum(1 for key in store.keys() if store.get(key)) == SMALL_STEPS + 1  # the steps, and the engine's passport
    tracking = open_tracking(repository / "artifacts", None)
    (parent,) = tracking.find_runs(kind="build")
    assert (parent.run_id, parent.status) == (result["run"], "FINISHED")
    children = tracking.find_runs(kind="engine", parent_run_id=parent.run_id)
    assert {c.name for c in children} == {"tiny/int8/cpu"}
    assert {c.status for c in children} == {"FINISHED"}


@pytest.mark.parametrize(
    "moment", [pytest.param("tiny/fold: started", marks=pytest.mark.faults), "tiny/int8/cpu/build: started"]
)
def test_kill_9_and_a_second_run_end_as_one_run(
    small_repository: Path, moment: str, build_again: Callable[[], dict[str, object]]
) -> None:
    process = start(small_repository)
    read_until(process, moment)
    process.send_signal(signal.SIGKILL)
    process.wait()
    wait_gone(process.pid, 10)
    assert_as_undisturbed(small_repository, build_again())


def test_ctrl_c_ends_the_step_within_5_s_and_leaves_nothing_half_done(
    small_repository: Path, monkeypatch: pytest.MonkeyPatch, build_again: Callable[[], dict[str, object]]
) -> None:
    """The step that is interrupted would take ten minutes. Its metric writes a file, which the sandbox forbids."""
    monkeypatch.setenv("ENGINEWORKS_SANDBOX", "process")
    recipe = small_repository / "recipes" / "tiny.yaml"
    right = recipe.read_text(encoding="utf-8")
    recipe.write_text(right.replace("metric: top1", "metric: {python: slowly:slow}"), encoding="utf-8")
    (small_repository / "recipes" / "slowly.py").write_text(SLOW_METRIC, encoding="utf-8")
    process = start(small_repository)
    read_until(process, "compare: started")
    begin = time.monotonic()
    while not (small_repository / "recipes" / "begun").exists():
        assert time.monotonic() - begin < 60, "the metric was not computed"
        time.sleep(0.05)
    children = set(group_members(process.pid)) - {process.pid}
    assert children
    begin = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)
    while children & set(group_members(process.pid)):
        assert time.monotonic() - begin < 5
        time.sleep(0.05)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert "interrupted" in err.splitlines()[-1]
    wait_gone(process.pid, 2)
    assert list((small_repository / "artifacts/store/partial").iterdir()) == []
    tracking = open_tracking(small_repository / "artifacts", None)
    (parent,) = tracking.find_runs(kind="build")
    assert parent.status == "KILLED"
    recipe.write_text(right, encoding="utf-8")
    result = build_again()
    steps = result["steps"]
    assert isinstance(steps, dict)
    assert steps["reused"] > 0
