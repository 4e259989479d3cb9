"""The main job from the command line: a plan with nothing to do is answered from its record, others by the flow."""

from __future__ import annotations

import time
from collections.abc import Sequence
from importlib.metadata import entry_points
from typing import Protocol

from engineworks.calibration_health import calibration_health
from engineworks.comparison import compare_with_peers
from engineworks.errors import InputError
from engineworks.plan import Plan
from engineworks.results import BuildResult, StepCounts, engine_result
from engineworks.settings import Settings
from engineworks.store import open_store


class BuildFlow(Protocol):
    """Runs plans as Prefect flow runs, in this process. Found by its entry point: the library does not import it."""

    def __call__(self, plans: Sequence[Plan], settings: Settings, *, only: str | None) -> list[BuildResult]: ...


def build_plans(plans: Sequence[Plan], settings: Settings, *, only: str | None = None) -> list[BuildResult]:
    """Build every plan; results come in the order of the plans."""
    recorded = {id(plan): result for plan in plans if (result := recorded_result(plan, settings)) is not None}
    rest = [plan for plan in plans if id(plan) not in recorded]
    built = iter(_flow()(rest, settings, only=only) if rest else ())
    return [recorded[id(plan)] if id(plan) in recorded else next(built) for plan in plans]


def recorded_result(plan: Plan, settings: Settings) -> BuildResult | None:
    """The result of a build that needs no step and is on record, else None.

    Every artifact is verified and judged again; only the record itself is taken from MLflow.
    """
    if plan.to_do:
        return None
    start = time.monotonic()
    store = open_store(settings)
    goals = {key for key in plan.goals if plan.steps[key].state == "cached"}
    if any(store.get(key) is None for key in goals):
        return None
    from engineworks.tracking import open_tracking

    found = open_tracking(settings.artifacts, settings.tracking_uri).find_runs(
        recipe=plan.recipe, build_key=plan.build_key, kind="build", limit=5
    )
    found = [run for run in found if run.status == "FINISHED"]
    if not found:
        return None
    reused = sum(1 for step in plan.steps.values() if step.state == "cached")
    report = settings.runs / found[0].run_id / "report.html"
    calibration = calibration_health(plan, store)
    engines = tuple(engine_result(plan, engine, store, {}) for engine in plan.engines)
    return BuildResult(
        recipe=plan.recipe,
        run=found[0].run_id,
        engines=engines,
        refused=plan.refused,
        steps=StepCounts(reused=reused),
        report=report if report.is_file() else None,
        seconds=time.monotonic() - start,
        warnings=tuple(sentence for health in calibration for sentence in health.warnings),
        calibration=calibration,
        comparison=compare_with_peers(plan, engines, store, {}),
    )


def _flow() -> BuildFlow:
    found = list(entry_points(group="engineworks.flows", name="build"))
    if not found:
        raise InputError("the flows are not installed", hint="run 'make setup', or pip install -e .")
    flow: BuildFlow = found[0].load()
    return flow
