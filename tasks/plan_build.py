"""Recipe file → a build with its plan, every stored result that the plan counts on verified."""

from __future__ import annotations

from pathlib import Path

from prefect import task
from prefect.cache_policies import NO_CACHE

from engineworks.builds.state import Build
from engineworks.engines.peers import read_names
from engineworks.fingerprint import FileDigests
from engineworks.plan.champion_lookup import find_champions
from engineworks.plan.plan import plan_recipe, verify_stored
from engineworks.recipe.load import load_recipe
from engineworks.recipe.smoke import Mode, in_mode
from engineworks.settings import Settings
from engineworks.store.open import open_store


@task(name="plan", task_run_name="{recipe.stem}/plan", cache_policy=NO_CACHE)
def plan_build(recipe: Path, settings: Settings, only: str | None, compare: str | None, mode: Mode = "full") -> Build:
    loaded = in_mode(load_recipe(recipe, data_roots=settings.data_roots), mode)
    store, digests = open_store(settings), FileDigests(settings.artifacts / "digests.db")
    store.publish_waiting()
    names, champions = read_names(compare), find_champions(loaded, settings)
    plan = plan_recipe(loaded, store, digests, only=only, compare=names, champions=champions)
    if verify_stored(plan, store):
        plan = plan_recipe(loaded, store, digests, only=only, compare=names, champions=champions)
    digests.save()
    return Build(plan, settings)
