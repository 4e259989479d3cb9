"""Reports and limits → the engine's verdict."""

from __future__ import annotations

from prefect import task
from prefect.cache_policies import NO_CACHE

from engineworks.build_state import Build
from engineworks.results import EngineResult, engine_result


@task(name="gate", task_run_name="{engine_id}/gate", cache_policy=NO_CACHE)
def gate_engine(build: Build, engine_id: str) -> EngineResult:
    engine = next(e for e in build.plan.engines if e.id == engine_id)
    return engine_result(build.plan, engine, build.store, build.failures)
