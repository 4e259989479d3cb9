"""Reports and limits → every engine's verdict → MLflow: child runs of the build's run.

One task for all engines: gates take a millisecond each, and a task run of its own would cost an engine thirty.
"""

from __future__ import annotations

from dataclasses import replace

from prefect import task
from prefect.cache_policies import NO_CACHE

from engineworks.builds.passport import with_passport
from engineworks.builds.results import EngineResult, Failure, engine_result
from engineworks.builds.state import Build
from engineworks.builds.to_mlflow import engine_record
from engineworks.errors import StoreError, TrackingError
from engineworks.plan.plan import PlannedEngine
from engineworks.report.summary import engine_note
from engineworks.report.write import HTML_FILE
from engineworks.tracking.records import NOTE
from engineworks.tracking.spooled import SpooledRun


@task(name="conclude", task_run_name="{recipe}/verdicts", cache_policy=NO_CACHE)
def conclude_engines(build: Build, run: SpooledRun, recipe: str) -> None:
    """Put the result of every engine into the build."""
    del recipe  # names the task run
    for engine in build.plan.engines:
        build.engines[engine.id] = _conclude(build, run, engine)


def _conclude(build: Build, run: SpooledRun, engine: PlannedEngine) -> EngineResult:
    evaluated = engine_result(build.plan, engine, build.results, build.failures)
    try:
        result = with_passport(build.plan, evaluated, build.store, build.origin)
    except StoreError as error:  # a full disk: this engine failed, the others are still recorded
        failure = Failure(f"{engine.id}/passport", str(error))
        result = replace(evaluated, verdict="failed", checks=(), failure=evaluated.failure or failure)
    record = engine_record(build.plan, result, build.ladder_statements.get(engine.id, ""))
    note = engine_note(result, _report_page(build, run))
    run.record_engine(replace(record, tags={**record.tags, NOTE: note}))
    return result


def _report_page(build: Build, run: SpooledRun) -> str:
    """Return where MLflow will show the report, '' while MLflow does not answer."""
    if run.waits:
        return ""
    try:
        return build.tracking.pages().artifact(run.run_id, HTML_FILE)
    except TrackingError:
        return ""
