"""An engine that passed → a version in MLflow's registry, and the champion's alias."""

from __future__ import annotations

from collections.abc import Mapping

from prefect import task
from prefect.cache_policies import NO_CACHE

from engineworks.build_state import Build
from engineworks.release.promotion import EngineRelease, champions_before
from engineworks.release.promotion import release_engine as release_one
from engineworks.results import EngineResult


@task(name="champions", task_run_name="{recipe}/champions", cache_policy=NO_CACHE)
def read_champions(build: Build, recipe: str) -> Mapping[str, int | None]:
    """The champions before anything is judged: who moves one meanwhile is found out."""
    del recipe  # names the task run
    return champions_before(build.plan, build.tracking.registry())


@task(name="release", task_run_name="{engine_id}/release", cache_policy=NO_CACHE)
def release_engine(
    build: Build, engine: EngineResult, engine_id: str, run_id: str, champion: int | None
) -> EngineRelease:
    del engine_id  # names the task run
    return release_one(build.plan, engine, run_id, build.tracking, build.tracking.registry(), champion)
