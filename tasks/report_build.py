"""The build's result → report pages."""

from __future__ import annotations

from pathlib import Path

from prefect import task
from prefect.cache_policies import NO_CACHE

from engineworks.execution.state import Build
from engineworks.report import write_report


@task(name="report", task_run_name="{recipe}/report", cache_policy=NO_CACHE)
def report_build(build: Build, recipe: str, run_id: str) -> Path:
    del recipe  # names the task run
    return write_report(build.result(run_id), build.settings.runs / run_id)
