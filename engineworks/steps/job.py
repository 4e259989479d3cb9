"""A step in a child process: JSON in, JSON out."""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engineworks.errors import EngineworksError, StoreError
from engineworks.model.runtime.ort_forms import after_crashes
from engineworks.steps.step_job import StepJob
from engineworks.store.store import FULL


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
    except EngineworksError as error:
        if is_full(job.out):
            raise _no_space(job) from error
        error.message = _without_store_paths(error.message, job)
        raise
    except OSError as error:
        if error.errno in FULL:
            raise _no_space(job) from error
        raise
    except Exception as error:  # vendor libraries report a full disk in their own ways
        if is_full(job.out):
            raise _no_space(job) from error
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
