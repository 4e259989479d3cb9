"""On PYTHONPATH of a build under test: every step that a child runs is written down, and can be held at its end.

FAULTS_FOLDER/steps.log         a line per event: started|ended STEP PID
FAULTS_FOLDER/hold/STEP         (its slashes as ~) while this file is there the child waits, its files written and not
                                yet published, and FAULTS_FOLDER/held/STEP holds its pid
FAULTS_FOLDER/clock             seconds by which the wall clock of every process of the build is off
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

FOLDER = os.environ.get("FAULTS_FOLDER", "")
STEPS = "engineworks.steps.job"
RIGHT_TIME = time.time


def note(event: str, step: str) -> None:
    line = os.open(Path(FOLDER, "steps.log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(line, f"{event} {step} {os.getpid()}\n".encode())
    os.close(line)


def hold(step: str) -> None:
    name = step.replace("/", "~")
    gate, held = Path(FOLDER, "hold", name), Path(FOLDER, "held", name)
    if gate.exists():
        beside = held.with_name(f"{name}.{os.getpid()}")
        beside.write_text(str(os.getpid()))
        os.replace(beside, held)
    while gate.exists():
        time.sleep(0.05)


def watched(main: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def run(payload: Any) -> Any:
        note("started", payload["id"])
        answer = main(payload)
        hold(payload["id"])
        note("ended", payload["id"])
        return answer

    return run


class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> Any:
        if name != STEPS:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        assert spec is not None
        assert isinstance(spec.loader, importlib.abc.Loader)
        execute = spec.loader.exec_module

        def execute_and_watch(module: ModuleType) -> None:
            execute(module)
            module.main = watched(module.main)  # type: ignore[attr-defined]

        spec.loader.exec_module = execute_and_watch  # type: ignore[method-assign]
        return spec


def wrong_time() -> float:
    try:
        return RIGHT_TIME() + float(Path(FOLDER, "clock").read_text())
    except (OSError, ValueError):
        return RIGHT_TIME()


if FOLDER:
    sys.meta_path.insert(0, Finder())
    time.time = wrong_time
if os.environ.get("ENGINEWORKS_STORE", "").startswith("httpfiles://"):
    import fsspec

    fsspec.register_implementation("httpfiles", "remote_files.Files")
