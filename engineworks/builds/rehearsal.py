"""Builds recipes with other versions of packages, beside the present ones, and compares the results.

Engines that both sides can run are measured interleaved, so that a drift of the host does not decide.

Each side builds in an environment and artifacts of its own, under `artifacts/rehearse/`: store, MLflow database and
champions of the present are neither read nor written. Both keep what they built for the next rehearsal.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from engineworks.builds.step import alone_on_this_host
from engineworks.engines.engine_session import runner_of
from engineworks.errors import (
    EXIT_GATE_FAILED,
    EXIT_INCONCLUSIVE,
    EXIT_PASSED,
    EXIT_STEP_FAILED,
    EngineworksError,
    InputError,
    RunError,
)
from engineworks.fingerprint import digest_of
from engineworks.host.environments import make_environment
from engineworks.host.file_digests import FileDigests
from engineworks.measure.interleave import SIDES, Pace, Side, Watch, interleave
from engineworks.measure.regression import Comparison
from engineworks.measure.scorecard import CLOSE, Change, compare_builds
from engineworks.plan.plan import PlannedEngine, plan_recipes
from engineworks.plan.steps import Step
from engineworks.recipe.datasets.preparation import find_made
from engineworks.recipe.load import load_recipes
from engineworks.settings import Settings
from engineworks.store.store import Store

WITH_RESULT = (EXIT_PASSED, EXIT_GATE_FAILED, EXIT_INCONCLUSIVE, EXIT_STEP_FAILED)
"""Exit codes of builds that print a result."""

SCORECARD_FILE = "scorecard.json"

OWN_PLACES = ("ENGINEWORKS_STORE", "MLFLOW_TRACKING_URI", "PREFECT_API_URL", "PYTHONPATH", "PYTHONHOME")
"""Variables that would lead a build to the present artifacts, servers or packages."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Rehearsal:
    """requirements: the other versions. changes: by engine, the worst first. file: the same as JSON."""

    requirements: tuple[str, ...]
    changes: tuple[Change, ...]
    file: Path

    @property
    def worse(self) -> bool:
        return any(change.tone == "worse" for change in self.changes)

    def to_json(self) -> dict[str, Any]:
        changes = [change.to_json() for change in self.changes]
        return {"with": list(self.requirements), "worse": self.worse, "changes": changes, "file": str(self.file)}


def rehearse(
    recipes: Sequence[Path], requirements: Sequence[str], settings: Settings, echo: Say, *, only: str | None = None
) -> Rehearsal:
    """Build on both sides and compare. Raises `InputError` for an environment that cannot be made or a bad recipe."""
    root = settings.artifacts / "rehearse"
    python = make_environment(requirements, root / "environments", echo)
    sides = {}
    for name, executable in (("present", Path(sys.executable)), (python.parents[1].name, python)):
        echo(f"building with {'the present versions' if name == 'present' else ', '.join(requirements)}")
        sides[name] = _build(executable, recipes, root / name, settings, echo, only)
    timed = _time_interleaved(recipes, root / "present", sides, (Path(sys.executable), python), settings, echo)
    changes = compare_builds(sides["present"], sides[python.parents[1].name], timed)
    file = root / python.parents[1].name / SCORECARD_FILE
    found = Rehearsal(tuple(requirements), tuple(changes), file)
    file.write_text(json.dumps(found.to_json(), indent=1) + "\n", encoding="utf-8")
    return found


def _time_interleaved(
    recipes: Sequence[Path], artifacts: Path, sides: Mapping[str, Sequence[Mapping[str, Any]]], pythons: Sequence[Path],
    settings: Settings, echo: Say,
) -> dict[str, Mapping[str, Comparison]]:  # fmt: skip
    """By engine and shape: the rehearsed over the present version, of engines whose bytes differ or whose runtime
    does. An engine that cannot be timed so is said, and compared by the measurements of both builds."""
    store = Store(artifacts / "store")
    plans = plan_recipes(
        load_recipes(recipes, data_roots=settings.data_roots), store, FileDigests(settings.artifacts / "digests.db")
    )
    measured = [_measured(results) for results in sides.values()]
    found: dict[str, Mapping[str, Comparison]] = {}
    for plan, engine in ((p, e) for p in plans for e in p.engines):
        if "measure" not in engine.steps or not all(engine.id in side for side in measured):
            continue
        echo(f"{engine.id}: both versions, interleaved")
        pairs = [(python, side[engine.id]) for python, side in zip(pythons, measured, strict=True)]
        try:
            found[engine.id] = time_interleaved(
                engine, plan.steps[engine.steps["measure"]], store, pairs, _environ(artifacts, settings)
            )
        except EngineworksError as error:
            echo(f"{engine.id}: not measured interleaved: {error.message}")
    return found


def _measured(results: Sequence[Mapping[str, Any]]) -> dict[str, Path]:
    """Engine → the folder of its artifact, of those that were measured."""
    engines = (engine for result in results for engine in result["engines"])
    return {e["id"]: Path(e["path"]).parent for e in engines if e["path"] and e["latency"]}


def _environ(artifacts: Path, settings: Settings) -> dict[str, str]:
    """The variables of a process that must not see the present artifacts, servers or packages."""
    roots = os.pathsep.join(map(str, settings.data_roots))
    environ = {k: v for k, v in os.environ.items() if k not in OWN_PLACES}
    return environ | {"ENGINEWORKS_ARTIFACTS": str(artifacts)} | ({"ENGINEWORKS_DATA_ROOTS": roots} if roots else {})


def _build(
    python: Path, recipes: Sequence[Path], artifacts: Path, settings: Settings, echo: Say, only: str | None
) -> list[Mapping[str, Any]]:
    """Run `engineworks build` and return its results, one per recipe."""
    artifacts.mkdir(parents=True, exist_ok=True)
    command = [str(python), "-c", "from engineworks.cli import main; main()", "build", *map(str, recipes), "--json"]
    command += ["--only", only] if only else []
    environ = _environ(artifacts, settings)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environ) as process:
        try:
            out, err = process.communicate()
        except BaseException:
            process.terminate()
            raise
    if process.returncode not in WITH_RESULT or not out.strip().startswith("{"):
        lines = [line for line in err.splitlines() if line.strip()]
        message = lines[-1].removeprefix("error: ") if lines else f"exit code {process.returncode}"
        raise InputError(
            f"{'the present' if python == Path(sys.executable) else 'the other'} build gave no result: {message}"
        )
    result = json.loads(out)
    return list(result["recipes"]) if "recipes" in result else [result]


CODE = "from engineworks.steps.timed_engine import main; main()"


def time_interleaved(
    engine: PlannedEngine, measure: Step, store: Store, sides: Sequence[tuple[Path, Path]], environ: Mapping[str, str],
    *, max_s: float | None = None,
) -> dict[str, Comparison]:  # fmt: skip
    """The second side over the first, by named shape. Raises `RunError` where a side cannot run its engine.

    sides: Python and folder of the engine, of the present and of the other versions. store: has the evaluation data.
    """
    made = measure.inputs.get("evaluation")
    given = find_made(store.require(made).path) if made else measure.unkeyed["evaluation"]
    evaluation = [str(path) for path in (given if isinstance(given, list | tuple) else [given])]
    payloads = [{"folder": str(f), "params": measure.params, "evaluation": evaluation} for _, f in sides]
    with ExitStack() as stack:
        stack.enter_context(alone_on_this_host())
        pair = {
            side: stack.enter_context(_Process(python, payload, environ))
            for side, (python, _), payload in zip(SIDES, sides, payloads, strict=True)
        }
        attempt = interleave(
            {side: partial(_Loaded, process) for side, process in pair.items()}, list(measure.params["at"]), CLOSE,
            _Watches(runner_of(measure.params["target"]).device_watch(), pair), seed=int(digest_of(payloads)[:8], 16),
            pace=Pace(max_s=max_s),
        )  # fmt: skip
    return dict(attempt.shapes)


class _Process:
    """A side's process. Raises `RunError` for every error of it."""

    def __init__(self, python: Path, payload: Mapping[str, Any], environ: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(
            [str(python), "-c", CODE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            text=True, env=dict(environ),
        )  # fmt: skip
        self._payload = payload

    def __enter__(self) -> _Process:
        self.ask(self._payload)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def ask(self, order: Mapping[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(order) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise RunError(f"the process that ran the engine ended with exit code {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise RunError(answer["error"])
        return answer


class _Loaded:
    """Satisfies `interleave.Loaded`."""

    def __init__(self, process: _Process) -> None:
        self._process = process
        process.ask({"do": "load"})

    def time_runs(self, shape: str, runs: int) -> Sequence[float]:
        timed: Sequence[float] = self._process.ask({"do": "time", "shape": shape, "runs": runs})["ms"]
        return timed

    def close(self) -> None:
        self._process.ask({"do": "close"})


class _Watches:
    """Satisfies `interleave.Watch`: what both sides use of a processor is no foreign load."""

    def __init__(self, own: Watch, pair: Mapping[Side, _Process]) -> None:
        self._own, self._pair = own, pair

    def sample(self) -> Mapping[str, object]:
        reading = dict(self._own.sample())
        for process in self._pair.values() if "own_s" in reading else ():
            other = process.ask({"do": "sample"})["reading"]
            for name in ("own_s", "waited_s"):
                reading[name] = float(str(reading[name])) + float(other.get(name, 0.0))
        return reading

    def complaints(self, readings: Sequence[Mapping[str, object]]) -> Sequence[str]:
        return self._own.complaints(readings)
