"""The build → MLflow, or the spool: the parent run of its engines' runs, opened first and closed last."""

from __future__ import annotations

from typing import Literal

from prefect import task
from prefect.cache_policies import NO_CACHE

from engineworks.execution.state import Build
from engineworks.records import build_tags, plan_params, result_metrics, result_tags, result_texts
from engineworks.report.text import render_markdown
from engineworks.tracking import LastingRun, start_lasting
from engineworks.tracking.records import BUILD_KEY


@task(name="record start", task_run_name="{recipe}/record", cache_policy=NO_CACHE)
def start_record(build: Build, recipe: str, flow_run: str) -> LastingRun:
    plan = build.plan
    tags, params = build_tags(plan, flow_run), plan_params(plan)
    artifacts = build.settings.artifacts
    return start_lasting(build.tracking, artifacts, recipe, plan.build_key, tags, params, list(plan.steps))


@task(name="record end", task_run_name="{recipe}/record end", cache_policy=NO_CACHE)
def end_record(build: Build, run: LastingRun, recipe: str) -> None:
    """The parent run ends FAILED only if a step failed: a failed gate is a verdict, in the tags."""
    del recipe  # names the task run
    result = build.result(run.run_id)
    texts = {"plan.json": build.plan.to_json_text(), "report.md": render_markdown(result), **result_texts(result)}
    tags = result_tags(result) | {BUILD_KEY: build.plan.build_key}  # workers may have told us of their hardware
    status: Literal["FINISHED", "FAILED"] = "FAILED" if result.steps.failed else "FINISHED"
    run.finish(status, metrics=result_metrics(result), tags=tags, texts=texts)
