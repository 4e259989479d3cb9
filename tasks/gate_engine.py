"""Reports and limits → the engine's verdict."""

from __future__ import annotations

from collections.abc import Mapping

from prefect import task
from prefect.cache_policies import NO_CACHE

from engineworks.plan import Plan, PlannedEngine
from engineworks.results import EngineResult, Failure, engine_result
from engineworks.store import open_store


@task(name="gate", task_run_name="{engine.id}/gate", tags=["engineworks"], cache_policy=NO_CACHE)
def gate_engine(plan: Plan, engine: PlannedEngine, store: str, failures: Mapping[str, Failure]) -> EngineResult:
    return engine_result(plan, engine, open_store(store), failures)
