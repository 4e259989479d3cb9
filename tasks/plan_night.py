"""A recipe of the night → the result of a build that needs no step, or None if there is something to do."""

from __future__ import annotations

from collections.abc import Mapping

from prefect import task
from prefect.cache_policies import NO_CACHE

from engineworks.builds.command import recorded_result
from engineworks.builds.delivery import is_named, is_unfinished, was_asked, with_deliveries
from engineworks.builds.results import BuildResult
from engineworks.plan.champion_lookup import find_champions
from engineworks.plan.plan import plan_recipe
from tasks.night import Chosen
from tasks.night_lookup import Lookup


@task(name="look", task_run_name="{name}/look for changes", cache_policy=NO_CACHE)
def find_unchanged(
    chosen: Chosen, name: str, lookup: Lookup, online: Mapping[str, frozenset[str]], again: str | None
) -> BuildResult | None:
    """Find the result of an unchanged recipe. lookup: data for all recipes of the night. online: the workers of every
    pool, by name, which may have hardware that this host lacks."""
    del name  # names the task run
    assert chosen.loaded is not None  # refused before
    settings, store, digests = lookup.settings, lookup.store, lookup.digests
    plan = plan_recipe(chosen.loaded, store, digests, champions=find_champions(chosen.loaded, settings))
    digests.save()
    plan = with_deliveries(plan, store, again=again)
    open_ = [e for e in plan.engines if is_unfinished(plan, e) and e.target.target.pool in online]
    if any(is_named(e, again) or not was_asked(store, plan, e, online[e.target.target.pool]) for e in open_):
        return None
    checkout = lookup.checkout(chosen.loaded.root)
    return recorded_result(plan, settings, store=store, checkout=checkout, finished=lookup.finished, samples=False)
