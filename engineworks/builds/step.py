"""One step of a plan, run for real: its inputs from the store, its work in a child process, its result published."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TextIO

from engineworks.builds.retries import BY_ITSELF
from engineworks.builds.schedule import ALONE
from engineworks.engines.backends import attempts
from engineworks.errors import (
    BuildError,
    CalibrationError,
    ExportError,
    FoldError,
    LoweringError,
    PreparationError,
    RunError,
    StepError,
)  # fmt: skip
from engineworks.host.child import ChildPool
from engineworks.plan.kinds import StepName
from engineworks.plan.plan import Step
from engineworks.steps.step_job import LOG_FILE
from engineworks.store.store import Store

STEP_FUNCTION = "engineworks.steps.job:main"

TIME_LIMIT_S = 7200.0
"""Seconds after which a step's child is killed; a target has a limit of its own for builds."""

ERRORS: Mapping[StepName, type[StepError]] = {
    "export": ExportError, "fold": FoldError, "calibrate": CalibrationError, "lower": LoweringError,
    "build": BuildError, "reference": RunError, "lowered_reference": RunError, "compare": RunError, "measure": RunError,
    "peer": RunError, "compare_champion": RunError, "sensitivity": RunError, "prepare": PreparationError,
}  # fmt: skip
"""What a crash of a step's child is."""

USER_CODE = ("torch", "huggingface", "mlflow_pytorch")
"""Sources that run the user's own code: each in a fresh child, so that nothing of it stays behind."""

OPTIMIZING = ("reference", "calibrate", "lower", "sensitivity")
"""Steps that let ONNX Runtime optimize a model, wherever the engine will run."""

FRESH = ("measure", "peer")
"""Steps whose figures hold what their library takes for itself: another job's leavings would be in them, and theirs in
the next."""


@dataclass(frozen=True)
class Outcome:
    """How a step went. reused: the store had it, or another process made it meanwhile."""

    id: str
    key: str
    how: Literal["run", "reused"]
    seconds: float


def run_step(step: Step, store: Store, pool: ChildPool, *, say: Callable[[str], None]) -> Outcome:
    """Run the step unless the store has it. Raises `StepError` or `InputError`; then nothing is stored."""
    start = time.monotonic()
    found = store.get(step.key, say=say)
    if found is not None:
        return Outcome(step.id, step.key, "reused", 0.0)
    inputs = {role: store.require(key).path for role, key in step.inputs.items()}
    with store.writing(step.key, step.document, step.id) as writing:
        if writing.hit is not None:
            return Outcome(step.id, step.key, "reused", time.monotonic() - start)
        with alone_on_this_host() if step.kind in ALONE else nullcontext():
            _run_child(step, inputs, writing.folder, pool, cache=_cache_of(step, store))
    return Outcome(step.id, step.key, "run", time.monotonic() - start)


@contextmanager
def alone_on_this_host() -> Iterator[None]:
    """Two builds of this host measure one after the other, whatever stores and repositories they have."""
    with (Path(tempfile.gettempdir()) / f"engineworks-measure-{os.getuid()}.lock").open("w") as file:
        while True:  # polled, so that Ctrl-C is answered
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(0.05)
        yield


def _cache_of(step: Step, store: Store) -> Mapping[str, str]:
    """Where the step's backend keeps what it compiled for the device here, if it does so."""
    document = step.unkeyed.get("device_cache")
    return {"cache": str(store.device_cache(document))} if document else {}


def _environment(step: Step) -> Mapping[str, str]:
    """Marks the children that run engines of TensorRT: they are others than those that build, because the vendor keeps
    the first logger that a process gives it, and the builds' one is slow."""
    backend = step.params.get("target", {}).get("backend", "")
    return {"ENGINEWORKS_CHILD": "runs engines"} if backend.startswith("tensorrt") and step.kind != "build" else {}


def attempts_of(step: Step) -> int:
    """In how many ways the step can be done: each crash of its own child leads to the next. An engine that was built is
    run in one way only, the one it was tried in."""
    if step.kind == "build":
        return attempts(step.params["target"]["backend"])
    if step.kind == "lowered_reference":
        return 2  # the second runs nothing: engines are compared with fp32
    return attempts("onnxruntime") if step.kind in OPTIMIZING else 1


def _run_child(step: Step, inputs: Mapping[str, Path], out: Path, pool: ChildPool, *, cache: Mapping[str, str]) -> None:
    payload = {
        "kind": step.kind,
        "id": step.id,
        "params": dict(step.params),
        "inputs": {role: str(path) for role, path in inputs.items()},
        "unkeyed": {**_plain(step.unkeyed), **cache},
        "out": str(out),
    }
    log_file, crashes = out / LOG_FILE, list[str]()
    with log_file.open("w", encoding="utf-8", buffering=1) as log:
        while True:
            try:
                _run_once(step, {**payload, "crashes": crashes}, log, pool)
                return
            except StepError as error:
                crashes.append(error.message)
                if not BY_ITSELF.search(error.message) or len(crashes) == attempts_of(step):
                    if len(crashes) > 1:
                        error.message += f"; this was attempt {len(crashes)}, each with fewer optimizations"
                    error.log = log_file.read_text(encoding="utf-8") + (
                        error.log if error.log.startswith("Traceback") else ""
                    )
                    raise
                log.write(f"{error.message}: trying again with fewer optimizations\n")
            _clear(out)


def _run_once(step: Step, payload: Mapping[str, Any], log: TextIO, pool: ChildPool) -> None:
    pool.run(
        STEP_FUNCTION,
        payload,
        time_limit_s=float(step.unkeyed.get("time_limit_s", TIME_LIMIT_S)),
        on_line=lambda line: log.write(line + "\n"),
        fresh=step.kind in FRESH or step.params.get("source") in USER_CODE,
        env=_environment(step),
        what=step.id,
        error=ERRORS[step.kind],
    )


def _clear(out: Path) -> None:
    """What a crashed attempt left is no part of the next one's result."""
    for left in out.iterdir():
        if left.is_dir():
            shutil.rmtree(left)
        elif left.name != LOG_FILE:
            left.unlink()


def _plain(value: Any) -> Any:
    """Paths as text, so that the payload is JSON."""
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return str(value) if isinstance(value, Path) else value
