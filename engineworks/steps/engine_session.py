"""The stored engine of a build artifact → a session; its bytes are those that the store has just verified."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engineworks.backends import runner
from engineworks.backends.base import Session
from engineworks.errors import RunError
from engineworks.steps.build import SIDECAR_FILE


def read_sidecar(folder: Path) -> dict[str, Any]:
    sidecar: dict[str, Any] = json.loads((folder / SIDECAR_FILE).read_text(encoding="utf-8"))
    return sidecar


def load_engine(folder: Path, target: Mapping[str, Any]) -> Session:
    """Load the engine. Raises `RunError` where this host can not run it."""
    run = runner(target["backend"])
    why = "its backend can not run engines" if run is None else run.why_not_run(target["compute_capability"])
    if run is None or why is not None:
        raise RunError(f"the engine in {folder.name[:12]} can not be run here: {why}")
    return run.load(folder / read_sidecar(folder)["engine"], target["options"])
