"""The build → MLflow, or the spool: the parent run of its engines' runs, opened first and closed last."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Literal

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.utilities.urls import url_for

from engineworks.builds.record_note import note_used_by
from engineworks.builds.results import BuildResult
from engineworks.builds.state import Build
from engineworks.builds.to_mlflow import build_tags, plan_params, result_metrics, result_tags, result_texts
from engineworks.errors import TrackingError
from engineworks.report.answer import may_ship
from engineworks.report.background import Link
from engineworks.report.summary import NOTE_CHARS, verdict_table
from engineworks.report.write import HTML_FILE, MARKDOWN_FILE
from engineworks.tracking.records import BUILD_KEY, FLOW_PAGE, NOTE, PLAN_FILE, WHY
from engineworks.tracking.spooled import SpooledRun, start_spooled


@task(name="record start", task_run_name="{recipe}/record start", cache_policy=NO_CACHE)
def start_record(build: Build, recipe: str, flow_run: str) -> SpooledRun:
    plan = build.plan
    tags, params = build_tags(plan, flow_run), plan_params(plan)
    page = url_for("flow-run", obj_id=flow_run, url_type="ui") if flow_run else None
    artifacts = build.settings.artifacts
    tags |= {FLOW_PAGE: page} if page else {}
    note_used_by(build.store, artifacts, build.tracking)
    return start_spooled(build.tracking, artifacts, recipe, plan.build_key, tags, params, list(plan.steps))


@task(name="record end", task_run_name="{recipe}/record end", cache_policy=NO_CACHE)
def end_record(build: Build, run: SpooledRun, result: BuildResult, recipe: str, report: Path) -> None:
    """Close the parent run. It ends FAILED if a step or a gate failed."""
    pages = {name: report.with_name(name).read_text(encoding="utf-8") for name in (HTML_FILE, MARKDOWN_FILE)}
    texts = {PLAN_FILE: json.dumps(build.plan.to_json(), indent=1), **pages, **result_texts(result)}
    tags = result_tags(result) | {BUILD_KEY: build.plan.build_key}  # workers may have reported their hardware
    tags |= {WHY: may_ship(result).message, NOTE: _note(build, run, result)}
    bad = result.steps.failed or result.verdict in ("fail", "failed")
    status: Literal["FINISHED", "FAILED"] = "FAILED" if bad else "FINISHED"
    run.finish(status, metrics=result_metrics(result), tags=tags, texts=texts)
    if not run.waits:
        with suppress(TrackingError):  # columns of a web page: the next build sets them
            build.tracking.save_views(recipe, _columns(result))


def _note(build: Build, run: SpooledRun, result: BuildResult) -> str:
    """Return the run's description: the recipe's own, and the verdicts with a link to the report."""
    description = build.plan.loaded.recipe.description
    links = []
    if not run.waits:
        with suppress(TrackingError):
            links.append(Link("report", build.tracking.pages().artifact(run.run_id, HTML_FILE)))  # read on that page
    room = NOTE_CHARS - len(description)
    return f"{description}\n\n{verdict_table(result, links, most_chars=room)}".strip()


def _columns(result: BuildResult) -> list[str]:
    """Return metrics of the recipe's own shapes."""
    shapes = dict.fromkeys(name for e in result.engines for name in (e.latency.shapes if e.latency else ()))
    return [f"{figure}/{shape}" for shape in shapes for figure in ("latency_ms_p50", "throughput_per_s")]
