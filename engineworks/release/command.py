"""`engineworks release`: runs the Prefect flow if there is something to build, then releases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from engineworks.builds.command import load_flows, recorded_result
from engineworks.plan.plan import Plan
from engineworks.recipe.load import load_recipes
from engineworks.release.promotion import ReleaseResult, champions_before, release_build
from engineworks.settings import Settings
from engineworks.tracking.runs import open_tracking

ByEngine = Mapping[str, int | None]


def champions_of_recipes(recipes: Sequence[Path], settings: Settings) -> dict[str, ByEngine]:
    """Return `champions_before` by recipe. Raises `RecipeError` and what that raises."""
    loaded = load_recipes(recipes, data_roots=settings.data_roots)
    registry = open_tracking(settings.artifacts, settings.tracking_uri).registry()
    return {recipe.name: champions_before(recipe, registry) for recipe in loaded}


def release_plans(
    plans: Sequence[Plan], settings: Settings, champions: Mapping[str, ByEngine], *, only: str | None = None
) -> list[ReleaseResult]:
    """Build, evaluate and release every plan; results keep the plans' order. champions: looked up before planning."""
    return [_release(plan, settings, champions[plan.recipe], only) for plan in plans]


def _release(plan: Plan, settings: Settings, champions: ByEngine, only: str | None) -> ReleaseResult:
    """Release one plan; a recorded build needs no flow."""
    recorded = recorded_result(plan, settings)
    if recorded is not None:
        return release_build(plan, recorded, open_tracking(settings.artifacts, settings.tracking_uri), champions)
    released: ReleaseResult = load_flows()([plan], settings, only=only, champions=champions)[0]
    return released
