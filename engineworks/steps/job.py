"""A step in a child process: JSON in, the step's module does its work, JSON out."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

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
    importlib.import_module(f"engineworks.steps.{payload['kind']}").run(job)
    return {}


def _say(line: str) -> None:
    import sys

    sys.stderr.write(line.rstrip("\n") + "\n")
    sys.stderr.flush()
