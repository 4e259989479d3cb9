"""The stored engine of a build artifact → a session; its bytes are those that the store has just verified."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engineworks.backends import runner
from engineworks.backends.base import Runner, Serving, Session
from engineworks.errors import RunError
from engineworks.steps.build import SIDECAR_FILE


def read_sidecar(folder: Path) -> dict[str, Any]:
    sidecar: dict[str, Any] = json.loads((folder / SIDECAR_FILE).read_text(encoding="utf-8"))
    return sidecar


def runner_of(target: Mapping[str, Any]) -> Runner:
    """The backend that runs engines of this target. Raises `RunError` where this host can not."""
    run = runner(target["backend"])
    why = "its backend can not run engines" if run is None else run.why_not_run(target["compute_capability"])
    if run is None or why is not None:
        raise RunError(f"engines of this target can not be run here: {why}")
    return run


def load_engine(
    folder: Path,
    target: Mapping[str, Any],
    *,
    serving: Serving = Serving(),  # noqa: B008 - frozen
    cache: Path | None = None,
) -> Session:
    """Load the engine. Raises `RunError` where this host can not run it."""
    run = runner_of(target)
    return run.load(folder / read_sidecar(folder)["engine"], target["options"], serving=serving, cache=cache)
