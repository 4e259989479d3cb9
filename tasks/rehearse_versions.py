"""Two builds with different versions → a scorecard, which Prefect shows as a table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect import task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE

from engineworks.builds.progress import listener
from engineworks.builds.rehearsal import rehearse
from engineworks.report.scorecard import write_scorecard
from engineworks.settings import read_settings


@task(name="rehearse", task_run_name="{requirements}", cache_policy=NO_CACHE)
def rehearse_versions(recipes: list[str], requirements: list[str], only: str | None) -> dict[str, Any]:
    """Return the scorecard as JSON."""
    rehearsal = rehearse([Path(r) for r in recipes], requirements, read_settings(), listener().echo, only=only)
    write_scorecard(rehearsal)
    found = rehearsal.to_json()
    rows = [
        {"engine": c["engine"], "present": c["present"], "rehearsed": c["rehearsed"], "change": "; ".join(c["notes"])}
        for c in found["changes"]
    ]
    create_table_artifact(table=rows, key="rehearsal", description=", ".join(requirements))
    return found
