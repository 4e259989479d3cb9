"""Reports and limits → the engine's verdict → MLflow: a child run of the build's run.

Gate and record are one task: the pure gate takes a millisecond, its own task run would cost thirty.
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
from engineworks.report.summary import engine_note
from engineworks.report.write import HTML_FILE
from engineworks.tracking.records import NOTE
from engineworks.tracking.spooled import SpooledRun


@task(name="conclude", task_run_name="{engine_id}/conclude", cache_policy=NO_CACHE)
def conclude_engine(build: Build, run: SpooledRun, engine_id: str) -> EngineResult:
    engine = next(e for e in build.plan.engines if e.id == engine_id)
    judged = engine_result(build.plan, engine, build.results, build.failures)
    try:
        result = with_passport(build.plan, judged, build.store, build.origin)
    except StoreError as error:  # a full disk: this engine failed, the others are still recorded
        failure = Failure(f"{engine_id}/passport", str(error))
        result = replace(judged, verdict="failed", checks=(), failure=judged.failure or failure)
    record = engine_record(build.plan, result, build.ladder_statements.get(engine_id, ""))
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
