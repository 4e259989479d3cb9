"""`engineworks release`: the build, by the Prefect flow where something is to do, and then what was released of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from engineworks.build_command import load_flows, recorded_result
from engineworks.fingerprint import FileDigests
from engineworks.plan import Plan, plan_recipes
from engineworks.recipe_yaml import load_recipes
from engineworks.release.promotion import ReleaseResult, champions_before, release_build
from engineworks.settings import Settings
from engineworks.store import open_store
from engineworks.tracking import Tracking, open_tracking


def release_recipes(recipes: Sequence[Path], settings: Settings, *, only: str | None = None) -> list[ReleaseResult]:
    """Plan, build, judge and release every recipe; results come in their order."""
    loaded = load_recipes(recipes, data_roots=settings.data_roots)
    tracking = open_tracking(settings.artifacts, settings.tracking_uri)
    champions = {one.name: champions_before(one, tracking.registry()) for one in loaded}
    plans = plan_recipes(loaded, open_store(settings), FileDigests(settings.artifacts / "digests.db"), only=only)
    return [_release(plan, settings, tracking, champions[plan.recipe], only) for plan in plans]


def _release(
    plan: Plan, settings: Settings, tracking: Tracking, champions: Mapping[str, int | None], only: str | None
) -> ReleaseResult:
    """A build that is on record needs no flow."""
    recorded = recorded_result(plan, settings)
    if recorded is not None:
        return release_build(plan, recorded, tracking, champions)
    released: ReleaseResult = load_flows()([plan], settings, only=only, release=True)[0]
    return released
