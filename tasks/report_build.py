"""The build's result → report pages, and Prefect's page: the verdicts as a table, with links."""

from __future__ import annotations

import re
from pathlib import Path

from prefect import task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE

from engineworks.builds.results import BuildResult
from engineworks.builds.state import Build
from engineworks.report.answer import may_ship
from engineworks.report.background import Background
from engineworks.report.gather import gather_background
from engineworks.report.summary import verdict_table
from engineworks.report.write import write_report


@task(name="report", task_run_name="{recipe}/report", cache_policy=NO_CACHE)
def report_build(build: Build, result: BuildResult, recipe: str) -> Path:
    del recipe  # names the task run
    background = gather_background(result, build.plan.to_json(), build.tracking)
    page = write_report(result, build.settings.runs / result.run, background)
    _show_in_prefect(result, background, page)
    return page


def _show_in_prefect(result: BuildResult, background: Background, page: Path) -> None:
    """Make an artifact of the flow run. Its key is one per recipe, so that Prefect keeps the history of verdicts."""
    table = verdict_table(result, background.links)
    summary = f"Ship {result.recipe}? {may_ship(result).text}"
    create_markdown_artifact(f"{table}\n\nReport: `{page}`", key=artifact_key(result.recipe), description=summary)


def artifact_key(recipe: str) -> str:
    """Return a key that Prefect accepts: small letters, digits and dashes."""
    return "verdicts-" + re.sub(r"[^a-z0-9-]+", "-", recipe.lower()).strip("-")
