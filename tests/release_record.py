"""A build on record in MLflow as the flow leaves it, without Prefect."""

from __future__ import annotations

from typing import Any

from engineworks.builds.results import BuildResult, StepCounts
from engineworks.builds.to_mlflow import engine_record
from engineworks.tracking.runs import open_tracking


def record(built: Any) -> BuildResult:
    """The build on record in MLflow, as the flow leaves it."""
    tracking = open_tracking(built.settings.artifacts, None)
    engines = tuple(built.engine(e.id) for e in built.plan.engines)
    with tracking.start_build(built.plan.recipe, built.plan.build_key, {}, {}) as run:
        for engine in engines:
            run.record_engine(engine_record(built.plan, engine))
    return BuildResult(built.plan.recipe, run.run_id, engines, built.plan.refused, StepCounts())
