"""The build and its engines → MLflow: a parent run, and one child run per engine."""

from __future__ import annotations

from typing import Literal

from prefect import task
from prefect.cache_policies import NO_CACHE

from engineworks.plan import Plan
from engineworks.records import build_tags, engine_record, plan_params, result_metrics
from engineworks.report.text import render_markdown
from engineworks.results import BuildResult, EngineResult
from engineworks.tracking import BuildRun, Tracking


@task(name="record start", task_run_name="{plan.recipe}/record", tags=["engineworks"], cache_policy=NO_CACHE)
def start_record(plan: Plan, tracking: Tracking, flow_run: str) -> BuildRun:
    keys = list(plan.steps)
    return tracking.start_build(plan.recipe, plan.build_key, build_tags(plan, flow_run), plan_params(plan), keys)


@task(name="record engine", task_run_name="{engine.id}/record", tags=["engineworks"], cache_policy=NO_CACHE)
def record_engine(run: BuildRun, plan: Plan, engine: EngineResult) -> str:
    return run.record_engine(engine_record(plan, engine))


@task(name="record end", task_run_name="{result.recipe}/record end", tags=["engineworks"], cache_policy=NO_CACHE)
def end_record(run: BuildRun, plan: Plan, result: BuildResult) -> None:
    """The parent run ends FAILED only if a step failed: a failed gate is a verdict, in the tags."""
    texts = {"plan.json": plan.to_json_text(), "report.md": render_markdown(result)}
    status: Literal["FINISHED", "FAILED"] = "FAILED" if result.steps.failed else "FINISHED"
    run.finish(status, metrics=result_metrics(result), tags={"engineworks.verdict": result.verdict}, texts=texts)
