"""benchmarks/nightly.py says what it wanted and found, keeps it, and fails where something was missed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
OUR_OWN = ("nightly", "kills", "databases", "nightly_recipes", "nightly_stack")


@pytest.fixture
def nightly(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.setattr(sys, "path", [str(ROOT / "benchmarks"), *sys.path])
    yield import_module("nightly")
    for name in OUR_OWN:
        sys.modules.pop(name, None)


def run(nightly: ModuleType, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["nightly.py", *arguments])
    with pytest.raises(SystemExit) as ended:
        nightly.main()
    return int(ended.value.code or 0)


STACK = """
import sys, time
from pathlib import Path
from nightly_stack import Stack
with Stack(Path(sys.argv[1]), print) as stack:
    stack.start("sleeper", "python", "-c", "import time; time.sleep(60)")
    print(stack.children["sleeper"].pid, flush=True)
    time.sleep(60)
"""


def test_a_night_that_is_terminated_ends_what_it_started(tmp_path: Path) -> None:
    command = [sys.executable, "-c", STACK, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT / "benchmarks", stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as night:
        assert night.stdout is not None
        started = int(night.stdout.readline())
        night.terminate()
    assert not Path("/proc", str(started)).exists()


def test_of_many_processes_one_builds(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    command = [sys.executable, str(ROOT / "benchmarks" / "nightly.py"), "--only", "race", "--processes", "20"]
    done = subprocess.run([*command, "--out", str(out)], capture_output=True, text=True, check=True)
    assert done.stdout == "20 processes race for one key: wanted 1 build, found 1 build, 20 got it whole\n"
    assert json.loads(out.read_text(encoding="utf-8"))["race"]["figures"]["builds"] == 1


def test_what_was_missed_is_said_kept_and_fails(
    nightly: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    night = {"processor_s": 9.0, "peak_mib": 500.0}
    monkeypatch.setattr(nightly, "made_repository", lambda *_: tmp_path)
    monkeypatch.setattr(nightly, "measured_nights", lambda *_: night)
    out = tmp_path / "out.json"
    out.write_text('{"race": {"figures": {}}}', encoding="utf-8")
    assert run(nightly, monkeypatch, "--only", "no-change", "--out", str(out)) == 1
    said = capsys.readouterr().out.splitlines()
    assert said[0].endswith("our work: wanted ≤ 10 s, found 9.0 s")
    assert said[1].endswith("memory: wanted ≤ 400 MiB, found 500 MiB   MISSED")
    kept = json.loads(out.read_text(encoding="utf-8"))
    assert kept.keys() == {"race", "no-change"}
    assert [demand["good"] for demand in kept["no-change"]["demands"]] == [True, False]


def test_every_recipe_that_it_writes_can_be_read(nightly: ModuleType, tmp_path: Path) -> None:
    from engineworks.recipe.load import load_recipe

    names = {f"r{i}": ("fp32", "fp16", "int8") for i in range(5)}
    files = import_module("nightly_recipes").write_repository(tmp_path, names, targets=("cpu", "rtx30"), models=2)
    loaded = [load_recipe(file) for file in files]
    assert [one.name for one in loaded] == list(names)
    assert len({next(iter(one.files.model.values())) for one in loaded}) == 2
