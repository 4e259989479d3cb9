"""Runs found in the record by id, engine or recipe, and their files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeVar

from engineworks.errors import InputError, TrackingError
from engineworks.settings import Settings
from engineworks.tracking.records import KIND, RunSummary
from engineworks.tracking.runs import Tracking, open_tracking
from engineworks.typed_json import Report

R = TypeVar("R", bound=Report)

HINT = "`engineworks list engines` shows what was recorded"


def recorded(settings: Settings) -> Tracking:
    """Open the record. Raises `InputError` if nothing was ever recorded."""
    tracking = open_tracking(settings.artifacts, settings.tracking_uri)
    if not tracking.exists():
        raise InputError(f"nothing was recorded in {settings.artifacts}", hint="run 'engineworks build' first")
    return tracking


def find_run(tracking: Tracking, name: str) -> RunSummary:
    """Find the run of this id, or the newest of an engine's id (recipe/precision/target) or a recipe's name.

    Raises `InputError` if there is none.
    """
    if name.count("/") == 2:
        runs = tracking.find_runs(engine=name, kind="engine", limit=1)
    elif len(name) == 32 and all(c in "0123456789abcdef" for c in name):
        runs = _by_id(tracking, name)
    else:
        runs = tracking.find_runs(recipe=Path(name).name.removesuffix(".yaml"), kind="build", limit=1)
    if not runs:
        raise InputError(f"'{name}': no run, engine or recipe of this name was recorded", hint=HINT)
    return runs[0]


def _by_id(tracking: Tracking, run_id: str) -> list[RunSummary]:
    try:
        run = tracking.get_run(run_id)
    except TrackingError:
        return []
    return [run] if run.tags.get(KIND) in ("build", "engine") else []


def build_of(tracking: Tracking, run: RunSummary) -> RunSummary:
    """Return the build's run: this one, or the parent of an engine's run."""
    return tracking.get_run(run.parent_run_id) if run.parent_run_id else run


def engine_runs(tracking: Tracking, build: RunSummary) -> list[RunSummary]:
    """Return runs of the build's engines, by engine."""
    runs = tracking.find_runs(parent_run_id=build.run_id, kind="engine", limit=1000)
    return sorted(runs, key=lambda run: run.engine or "")


def read_json(tracking: Tracking, run_id: str, path: str) -> Any:
    """Read a recorded JSON file; None if it is missing."""
    text = read_text(tracking, run_id, path)
    return json.loads(text) if text is not None else None


def read_report(tracking: Tracking, run_id: str, kind: type[R]) -> R | None:
    """Read a recorded report as its class; None if it is missing. Raises `StoreError` if it is not as documented."""
    text = read_text(tracking, run_id, kind.FILE)
    return kind.parse(text, f"run {run_id}: {kind.FILE}") if text is not None else None


def read_text(tracking: Tracking, run_id: str, path: str) -> str | None:
    try:
        return tracking.read_text(run_id, path)
    except TrackingError:
        return None
