"""The build's result → report pages."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from prefect import task
from prefect.cache_policies import NO_CACHE

from engineworks.report import write_report
from engineworks.results import BuildResult


@task(name="report", task_run_name="{result.recipe}/report", tags=["engineworks"], cache_policy=NO_CACHE)
def report_build(result: BuildResult, folder: Path) -> BuildResult:
    return replace(result, report=write_report(result, folder))
