"""A plan → a build, with every stored result that the plan uses verified."""

from __future__ import annotations

from pathlib import Path

from prefect import task
from prefect.cache_policies import NO_CACHE

from engineworks.builds.state import Build
from engineworks.commands.plans import read_plans
from engineworks.plan.plan import Plan, verify_stored, with_states
from engineworks.recipe.smoke import Mode
from engineworks.settings import Settings


@task(name="plan", task_run_name="{recipe.stem}/plan", cache_policy=NO_CACHE)
def plan_build(recipe: Path, settings: Settings, only: str | None, compare: str | None, mode: Mode = "full") -> Build:
    """Plan here, where the flow was started with plain values."""
    (plan,) = read_plans(settings, [recipe], only, compare, mode)
    return _open(plan, settings)


@task(name="plan", task_run_name="{recipe}/plan", cache_policy=NO_CACHE)
def open_build(plan: Plan, settings: Settings, recipe: str) -> Build:
    """Open the build of an existing plan."""
    del recipe  # names the task run
    return _open(plan, settings)


def _open(plan: Plan, settings: Settings) -> Build:
    build = Build(plan, settings)
    build.store.publish_waiting()
    while verify_stored(build.plan, build.store):
        build.plan = with_states(build.plan, build.store)
    return build
