"""An engine that passed → a version in MLflow's registry, and the champion's alias."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from prefect import task
from prefect.cache_policies import NO_CACHE

from engineworks.builds.results import EngineResult
from engineworks.builds.state import Build
from engineworks.recipe.load import load_recipe
from engineworks.release.promotion import EngineRelease, champions_before
from engineworks.release.promotion import release_engine as release_one
from engineworks.settings import Settings
from engineworks.tracking.runs import open_tracking


@task(name="champions", task_run_name="{recipe.stem}/champions", cache_policy=NO_CACHE)
def read_champions(recipe: Path, settings: Settings) -> Mapping[str, int | None]:
    """Read the champions before planning, so that concurrent changes are detected."""
    tracking = open_tracking(settings.artifacts, settings.tracking_uri)
    return champions_before(load_recipe(recipe, data_roots=settings.data_roots), tracking.registry())


@task(name="release", task_run_name="{engine_id}/release", cache_policy=NO_CACHE)
def release_engine(
    build: Build, engine: EngineResult, engine_id: str, run_id: str, champion: int | None, dropped: str
) -> EngineRelease:
    del engine_id  # names the task run
    registry = build.tracking.registry()
    return release_one(build.plan, engine, run_id, build.tracking, registry, champion, dropped=dropped)
