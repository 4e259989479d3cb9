"""Runs one step of a plan: inputs from the store, work in a child process, result published."""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TextIO

from engineworks.builds.progress import listener
from engineworks.engines.backends import attempts, backend
from engineworks.engines.engine_files import LOG_FILE
from engineworks.engines.sidecar import Sidecar
from engineworks.errors import StepError, StoreError
from engineworks.host.lock import locked, private_folder
from engineworks.plan.kinds import STEP_KINDS
from engineworks.plan.plan import Plan
from engineworks.plan.steps import Step
from engineworks.settings import uses_workarounds
from engineworks.store.store import Store
from engineworks.typed_json import Report, read_file

if TYPE_CHECKING:
    from engineworks.host.child import ChildPool

STEP_FUNCTION = "engineworks.steps.job:main"

TIME_LIMIT_S = 7200.0
"""Seconds after which a step's child is killed; a target has its own limit for builds."""


@dataclass(frozen=True)
class Outcome:
    """The outcome of a step. reused: the store had it, or another process made it meanwhile."""

    id: str
    key: str
    how: Literal["run", "reused"]
    seconds: float


def run_step(step: Step, store: Store, pool: ChildPool, *, echo: Callable[[str], None]) -> Outcome:
    """Run the step unless the store has it. Raises `StepError` or `InputError`; then nothing is stored."""
    start = time.monotonic()
    stored = store.get(step.key, echo=echo)
    if stored is not None:
        return Outcome(step.id, step.key, "reused", 0.0)
    inputs = {role: store.require(key).path for role, key in step.inputs.items()}
    with store.writing(step.key, step.document, step.id) as writing:
        if writing.hit is not None:
            return Outcome(step.id, step.key, "reused", time.monotonic() - start)
        with alone_on_this_host() if STEP_KINDS[step.kind].alone else nullcontext():
            writing.reports = _run_child(step, inputs, writing.folder, pool, cache=_cache_of(step, store))
    return Outcome(step.id, step.key, "run", time.monotonic() - start)


def run_needed(plan: Plan, keys: Iterable[str], store: Store) -> None:
    """Run these steps and all their inputs, as a listener sees it."""
    for step in plan.needed(keys):
        run_heard(step, store)


def run_heard(step: Step, store: Store) -> None:
    from engineworks.host.child import default_pool

    listener().started(step)
    outcome = run_step(step, store, default_pool(), echo=listener().echo)
    if outcome.how == "run":
        listener().finished(step, outcome.seconds)


def alone_on_this_host() -> AbstractContextManager[None]:
    """Lock so that two builds of this host measure one after the other, whatever their stores and repositories.

    Raises `StepError` where the lock's folder is not this user's own.
    """
    try:
        return locked(private_folder() / "measure.lock")
    except OSError as error:
        raise StepError(f"{error.filename}: {error.strerror}") from None


def _cache_of(step: Step, store: Store) -> Mapping[str, str]:
    """Return where the step's backend caches what it compiled for this device, if it has such a cache."""
    document = step.unkeyed.get("device_cache")
    return {"cache": str(store.device_cache(document))} if document else {}


def _environment(step: Step, inputs: Mapping[str, Path]) -> Mapping[str, str]:
    """Mark children that run engines, if the backend separates them from those that build; and set what the engine
    wants to be set. Engines that want something else get other children: a vendor's library reads it once."""
    name = step.params.get("target", {}).get("backend")
    apart = name and step.kind != "build" and backend(name).TRAITS.own_process
    wanted = Sidecar.read(inputs["build"]).details.get("environment", {}) if apart and "build" in inputs else {}
    return {**({"ENGINEWORKS_CHILD": "runs engines"} if apart else {}), **wanted}


def attempts_of(step: Step) -> int:
    """Return in how many ways the step can run; each crash of its own child leads to the next. A built engine runs in
    one way only, the one it was tried in."""
    kind = STEP_KINDS[step.kind]
    if kind.optimizer == "target" and not uses_workarounds():
        return 1
    optimizer = step.params["target"]["backend"] if kind.optimizer == "target" else kind.optimizer
    return attempts(optimizer) if optimizer else kind.attempts


def _run_child(
    step: Step, inputs: Mapping[str, Path], out: Path, pool: ChildPool, *, cache: Mapping[str, str]
) -> dict[str, str]:
    """Run the step, again after a library's crash; return the digests of its reports by name."""
    payload = {
        "kind": step.kind,
        "id": step.id,
        "params": dict(step.params),
        "inputs": {role: str(path) for role, path in inputs.items()},
        "unkeyed": {**_plain(step.unkeyed), **cache},
        "out": str(out),
        "time_limit_s": float(step.unkeyed.get("time_limit_s", TIME_LIMIT_S)),
    }
    log_file, crashes, env = out / LOG_FILE, list[str](), _environment(step, inputs)
    with log_file.open("w", encoding="utf-8", buffering=1) as log:
        while True:
            try:
                return _run_once(step, {**payload, "crashes": crashes}, log, pool, env)
            except StepError as error:
                crashes.append(error.message)
                if error.crash != "library" or len(crashes) == attempts_of(step):
                    if len(crashes) > 1:
                        error.message += f"; this was attempt {len(crashes)}, each with fewer optimizations"
                    error.log = log_file.read_text(encoding="utf-8") + (
                        error.log if error.log.startswith("Traceback") else ""
                    )
                    raise
                log.write(f"{error.message}: trying again with fewer optimizations\n")
            _clear(out)


def _run_once(
    step: Step, payload: Mapping[str, Any], log: TextIO, pool: ChildPool, env: Mapping[str, str]
) -> dict[str, str]:
    kind = STEP_KINDS[step.kind]
    answer = pool.run(
        STEP_FUNCTION,
        payload,
        time_limit_s=payload["time_limit_s"],
        on_line=lambda line: log.write(line + "\n"),
        fresh=kind.fresh,
        env=env,
        what=step.id,
        error=kind.error,
    )
    reports = dict(answer["reports"])
    for report in (*kind.typed, *(r for r in kind.optional if r.FILE in reports)):
        _read_back(step, report, payload["out"], reports.get(report.FILE))
    return reports


def _read_back(step: Step, report: type[Report], out: str, digest: str | None) -> None:
    """Raises the step's error unless it wrote this report, and the file is as documented."""
    try:
        data = read_file(Path(out) / report.FILE)
        if digest != hashlib.sha256(data).hexdigest():
            raise STEP_KINDS[step.kind].error(f"{step.id}: did not write the {report.FILE} in its result")
        report.parse(data, f"{step.id}: {report.FILE}")
    except StoreError as error:
        raise STEP_KINDS[step.kind].error(error.message) from None


def _clear(out: Path) -> None:
    """Remove what a crashed attempt left, which is no part of the next result."""
    for left in out.iterdir():
        if left.is_dir():
            shutil.rmtree(left)
        elif left.name != LOG_FILE:
            left.unlink()


def _plain(value: Any) -> Any:
    """Turn paths into text, so that the payload is JSON."""
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return str(value) if isinstance(value, Path) else value
