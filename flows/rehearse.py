"""Rehearses other versions of packages: builds recipes with them beside the present ones, and compares."""

from __future__ import annotations

from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State

from flows.outcomes import ended
from tasks.rehearse_versions import rehearse_versions


@flow(name="rehearse", flow_run_name="{requirements}")
def rehearse(recipes: list[str], requirements: list[str], only: str | None = None) -> State[dict[str, Any]]:
    """Build these recipe files with `requirements` (NAME==VERSION each) in an environment of its own.

    The flow ends failed if anything is worse. Its result: the scorecard as JSON. Champions are not touched.
    """
    found = rehearse_versions(recipes, requirements, only)
    worse = [change for change in found["changes"] if change["tone"] == "worse"]
    summary = "; ".join(f"{c['engine']}: {', '.join(c['notes'])}" for c in worse)
    return ended(summary or f"nothing is worse with {', '.join(requirements)}", found, good=not found["worse"])
