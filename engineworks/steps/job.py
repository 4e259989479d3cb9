"""A step in a child process: JSON in, the step's module does its work, JSON out."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engineworks.errors import EngineworksError
from engineworks.steps import StepJob


def main(payload: Mapping[str, Any]) -> dict[str, Any]:
    """Run the step that the payload names. What it prints, and what its libraries print, becomes the step's log."""
    job = StepJob(
        id=payload["id"],
        params=payload["params"],
        inputs={role: Path(folder) for role, folder in payload["inputs"].items()},
        aside=payload["aside"],
        out=Path(payload["out"]),
        say=_say,
    )
    try:
        importlib.import_module(f"engineworks.steps.{payload['kind']}").run(job)
    except EngineworksError as error:
        error.message = _without_store_paths(error.message, job)
        raise
    return {}


def _without_store_paths(message: str, job: StepJob) -> str:
    """The user knows steps, not keys: '<store>/objects/c9/c9…/model.onnx' is 'export/model.onnx' to him."""
    for role, folder in job.inputs.items():
        message = message.replace(str(folder), role)
    return message.replace(str(job.out), job.id)


def _say(line: str) -> None:
    import sys

    sys.stderr.write(line.rstrip("\n") + "\n")
    sys.stderr.flush()
