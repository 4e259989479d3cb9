"""Builds that are stopped: Ctrl-C within 5 s, kill -9 at any moment; the next build ends as an undisturbed one does."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import STEPS

from engineworks.store.store import Store
from engineworks.tracking.runs import open_tracking

pytestmark = pytest.mark.xdist_group("interruption")
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
    """Builds start their own server, not the one of other tests."""
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


def build_again(repository: Path) -> dict[str, object]:
    done = subprocess.run(
        [*BUILD[:-1], "--json"], cwd=repository, capture_output=True, text=True, check=False, timeout=240
    )
    assert done.returncode == 0, done.stderr
    value: dict[str, object] = json.loads(done.stdout)
    return value


def assert_as_undisturbed(repository: Path, result: dict[str, object]) -> None:
    """What one whole build leaves: every step stored and sound, one parent run, one child per engine."""
    engines = result["engines"]
    assert isinstance(engines, list)
    assert {e["id"]: e["verdict"] for e in engines} == {"tiny/fp32/cpu": "pass", "tiny/int8/cpu": "pass"}
    steps = result["steps"]
    assert isinstance(steps, dict)
    assert steps["run"] + steps["reused"] == STEPS
    store = Store(repository / "artifacts" / "store")
    assert sum(1 for key in store.keys() if store.get(key)) == STEPS + 2  # the steps, and a passport per engine
    tracking = open_tracking(repository / "artifacts", None)
    (parent,) = tracking.find_runs(kind="build")
    assert (parent.run_id, parent.status) == (result["run"], "FINISHED")
    children = tracking.find_runs(kind="engine", parent_run_id=parent.run_id)
    assert {c.name for c in children} == {"tiny/fp32/cpu", "tiny/int8/cpu"}
    assert {c.status for c in children} == {"FINISHED"}


@pytest.mark.parametrize(
    "moment", [pytest.param("tiny/fold: started", marks=pytest.mark.faults), "tiny/int8/cpu/build: started"]
)
def test_kill_9_and_a_second_run_end_as_one_run(repository: Path, moment: str) -> None:
    process = start(repository)
    read_until(process, moment)
    process.send_signal(signal.SIGKILL)
    process.wait()
    wait_gone(process.pid, 10)
    assert_as_undisturbed(repository, build_again(repository))


def test_ctrl_c_ends_the_step_within_5_s_and_leaves_nothing_half_done(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The step that is interrupted would take ten minutes. Its metric writes a file, which the sandbox forbids."""
    monkeypatch.setenv("ENGINEWORKS_SANDBOX", "process")
    recipe = repository / "recipes" / "tiny.yaml"
    right = recipe.read_text(encoding="utf-8")
    recipe.write_text(right.replace("metric: top1", "metric: {python: slowly:slow}"), encoding="utf-8")
    (repository / "recipes" / "slowly.py").write_text(SLOW_METRIC, encoding="utf-8")
    process = start(repository)
    read_until(process, "compare: started")
    begin = time.monotonic()
    while not (repository / "recipes" / "begun").exists():
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
    assert list((repository / "artifacts/store/partial").iterdir()) == []
    tracking = open_tracking(repository / "artifacts", None)
    (parent,) = tracking.find_runs(kind="build")
    assert parent.status == "KILLED"
    recipe.write_text(right, encoding="utf-8")
    result = build_again(repository)
    steps = result["steps"]
    assert isinstance(steps, dict)
    assert steps["reused"] > 0
