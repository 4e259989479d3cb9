"""A step in a child process: JSON in, JSON out."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engineworks.errors import EngineworksError, StoreError
from engineworks.model.ort import after_crashes
from engineworks.recipe.datasets.preparation import find_made
from engineworks.store.store import FULL
from engineworks.typed_json import Report


def main(payload: Mapping[str, Any]) -> dict[str, Any]:
    """Run the step that the payload names; return the digests of its reports.

    Output of the step and its libraries becomes the step's log. Its last line is the processor time, user and system,
    of this process and the children that have ended.
    """
    before = sum(os.times()[:4])
    job = StepJob(
        id=payload["id"],
        params=payload["params"],
        inputs={role: Path(folder) for role, folder in payload["inputs"].items()},
        unkeyed=payload["unkeyed"],
        out=Path(payload["out"]),
        echo=echo,
        crashes=tuple(payload.get("crashes", ())),
        time_limit_s=payload.get("time_limit_s"),
    )
    try:
        with after_crashes(len(job.crashes)):
            importlib.import_module(_module(payload)).run(job)
    except Exception as error:  # vendor libraries report a full disk in their own ways
        if is_full(job.out) or getattr(error, "errno", None) in FULL:
            raise _no_space(job) from error
        if isinstance(error, EngineworksError):
            error.message = _without_store_paths(error.message, job)
        raise
    if is_full(job.out):  # C++ that does not check its last write
        raise _no_space(job)
    echo(f"took {sum(os.times()[:4]) - before:.2f} s of processor time")
    return {"reports": job.reports}


def _module(payload: Mapping[str, Any]) -> str:
    """Return the module that runs the step: a decoder's steps, whose documents say so, have modules of their own."""
    room = "steps.decoder" if "decoder" in payload["params"] else "steps"
    return f"engineworks.{room}.{payload['kind']}"


def is_full(folder: Path) -> bool:
    """Return whether the folder's file system is full."""
    space = os.statvfs(folder)
    return space.f_bavail == 0 and space.f_blocks > 0


def _no_space(job: StepJob) -> StoreError:
    return StoreError(
        f"{job.id}: its result cannot be written: no space left on the disk of the store",
        hint="free some space ('engineworks gc' may), and build again",
    )


def _without_store_paths(message: str, job: StepJob) -> str:
    """Replace keys, which users do not know: '<store>/objects/c9/c9…/model.onnx' becomes 'export/model.onnx'."""
    for role, folder in job.inputs.items():
        message = message.replace(str(folder), role)
    return message.replace(str(job.out), job.id)


def echo(line: str) -> None:
    """Write a line of the step's log."""
    import sys

    sys.stderr.write(line.rstrip("\n") + "\n")
    sys.stderr.flush()


@dataclass(frozen=True)
class StepJob:
    """The input of a step's `run`.

    params: the slice of the plan that it reads (part of its key). inputs: folders of earlier steps' artifacts by role.
    unkeyed: what cannot shape the result, mostly absolute paths. out: an empty folder to fill. say: logs one line of
    the step. crashes: how earlier attempts at this step ended, one sentence each. time_limit_s: after which the step is
    killed. reports: sha256 by name of the reports written so far. begin: when it began, by `time.monotonic`.
    """

    id: str
    params: Mapping[str, Any]
    inputs: Mapping[str, Path]
    unkeyed: Mapping[str, Any]
    out: Path
    echo: Callable[[str], None]
    crashes: tuple[str, ...] = ()
    time_limit_s: float | None = None
    reports: dict[str, str] = field(default_factory=dict)
    begin: float = field(default_factory=time.monotonic)

    def seconds_left(self) -> float | None:
        """Return the time limit of code that this step waits for: it ends before the step, so that it is named."""
        if self.time_limit_s is None:
            return None
        return max(0.0, 0.95 * self.time_limit_s - (time.monotonic() - self.begin))

    def path(self, name: str) -> Path:
        """Return an absolute path from `unkeyed`, or of the samples that a `prepare` step made for this role."""
        return find_made(self.inputs[name]) if name in self.inputs else Path(self.unkeyed[name])

    def paths(self, name: str) -> tuple[Path, ...]:
        """Return paths as `path` does, for samples, which may lie in several files."""
        several = () if name in self.inputs else self.unkeyed[name]
        return tuple(map(Path, several)) if several and isinstance(several, list | tuple) else (self.path(name),)

    def write(self, report: Report) -> None:
        """Write a report into its own file."""
        self.write_json(report.FILE, report.to_json())

    def write_json(self, name: str, value: object) -> None:
        """Write a report into `out`. NaN is not JSON: write null for a missing value."""
        data = (json.dumps(value, indent=1, allow_nan=False) + "\n").encode()
        path = self.out / name
        path.unlink(missing_ok=True)  # whatever code of others put there, a link perhaps
        path.write_bytes(data)
        self.reports[name] = hashlib.sha256(data).hexdigest()
