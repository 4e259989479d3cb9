"""One engine of two environments, measured interleaved: each side is a process with a Python of its own."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from engineworks.builds.step import alone_on_this_host
from engineworks.engines.engine_session import runner_of
from engineworks.errors import RunError
from engineworks.fingerprint import digest_of
from engineworks.measure.interleave import SIDES, Pace, Side, Watch, interleave
from engineworks.measure.regression import Comparison
from engineworks.measure.scorecard import CLOSE
from engineworks.plan.plan import PlannedEngine
from engineworks.plan.steps import Step
from engineworks.recipe.datasets.preparation import find_made
from engineworks.store.store import Store

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
