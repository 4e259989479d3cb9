"""Releases a recipe: builds and evaluates its engines, then moves the champions of those that passed."""

from __future__ import annotations

from pathlib import Path

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run

from engineworks.builds.command import Champions
from engineworks.builds.progress import listener
from engineworks.builds.state import Build
from engineworks.plan.plan import Plan
from engineworks.release.promotion import ReleaseResult, registered_model
from engineworks.settings import Settings, read_settings
from flows.build_recipe import build_and_evaluate
from flows.local_steps import RUNNER
from flows.outcomes import ended, opaque
from flows.planned import run_name, run_planned
from tasks.plan_build import open_build, plan_build
from tasks.release_engine import read_champions, release_engine


@flow(
    name="release",
    flow_run_name=run_name,
    task_runner=RUNNER,  # type: ignore[arg-type]  # TaskRunner is invariant in its kind of future
)
def release(recipe: str, only: str | None = None) -> State[ReleaseResult]:
    """Release every engine of the recipe file that `only` (a glob over ids) selects.

    The flow ends failed unless every engine is champion now.
    """
    settings = read_settings()
    # First: a candidate must not replace a champion that it was not compared with.
    champions = read_champions(Path(recipe), settings)
    return _released(plan_build(Path(recipe), settings, only, None), champions)


def release_planned(plan: Plan, settings: Settings, only: str | None, champions: Champions) -> State[ReleaseResult]:
    """Release a plan made in this process. champions: from before it was made."""

    def body() -> State[ReleaseResult]:
        return _released(open_build(opaque(plan), settings, plan.recipe), champions)

    return run_planned(release, plan, only, body)


def _released(build: Build, champions: Champions) -> State[ReleaseResult]:
    listener().planned(build.plan)
    result = release_evaluated(build, champions)
    message = "; ".join(f"{e.id}: {e.message}" for e in result.engines)
    return ended(message, result, good=result.exit_code() == 0)


def release_evaluated(build: Build, champions: Champions) -> ReleaseResult:
    """Build and evaluate, then release one engine after the other."""
    evaluated = build_and_evaluate(build, str(flow_run.get_id() or ""))
    released = [
        release_engine(build, e, e.id, evaluated.run, champions[e.id], evaluated.dropped.get(e.id, ""))
        for e in evaluated.engines
    ]
    return ReleaseResult(evaluated, registered_model(build.plan.loaded), tuple(released))
