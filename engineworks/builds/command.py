"""The main job from the command line: a plan with nothing to do gets its recorded result, others run the flow."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import entry_points
from typing import Any, Protocol

from engineworks.builds.assembly import assemble_result
from engineworks.builds.passport import recipe_origin, with_passport
from engineworks.builds.results import BuildResult, engine_result
from engineworks.errors import InputError, TrackingError
from engineworks.host.git import Checkout
from engineworks.plan.plan import Plan
from engineworks.settings import Settings
from engineworks.store.shared import open_store
from engineworks.store.store import Store

FinishedBuilds = Mapping[tuple[str, str], str]
"""MLflow's runs of finished builds, by recipe and build key (`Tracking.finished_builds`)."""

NOT_ASKED: FinishedBuilds = {}

Champions = Mapping[str, int | None]
"""The champion's version by engine, None for none."""


class Flows(Protocol):
    """Runs plans as Prefect flow runs in this process. Loaded by its entry point: the library does not import it.

    champions: by engine, from before planning: run the flow `release`, which gives a `ReleaseResult` per plan. Without
    them run `build_recipe`, which gives a `BuildResult`.
    """

    def __call__(
        self, plans: Sequence[Plan], settings: Settings, *, only: str | None, champions: Champions | None = None
    ) -> list[Any]: ...


def build_plans(plans: Sequence[Plan], settings: Settings, *, only: str | None = None) -> list[BuildResult]:
    """Build every plan; results are in the order of the plans."""
    recorded = {id(plan): result for plan in plans if (result := recorded_result(plan, settings)) is not None}
    rest = [plan for plan in plans if id(plan) not in recorded]
    built = iter(load_flows()(rest, settings, only=only) if rest else ())
    return [recorded[id(plan)] if id(plan) in recorded else next(built) for plan in plans]


def recorded_result(
    plan: Plan,
    settings: Settings,
    *,
    store: Store | None = None,
    checkout: Checkout | None = None,
    finished: FinishedBuilds = NOT_ASKED,
    samples: bool = True,
) -> BuildResult | None:
    """Return the result of a recorded build that needs no step, else None.

    Verifies every artifact and evaluates it again; only the record itself comes from MLflow. A caller with many plans
    passes what they share: the store, the repository's checkout, the finished builds in MLflow. samples: as in
    `engine_result`.
    """
    if plan.to_do:
        return None
    start = time.monotonic()
    store = store or open_store(settings)
    goals = {key for key in plan.goals if plan.steps[key].state == "cached"}
    if any(store.get(key) is None for key in goals):
        return None
    store.publish_waiting()
    run, waits = _record_of(plan, settings, finished)
    if run is None:
        return None
    origin = recipe_origin(plan, checkout)
    report = settings.runs / run / "report.html"
    evaluated = (engine_result(plan, engine, store, {}, samples=samples) for engine in plan.engines)
    engines = tuple(with_passport(plan, engine, store, origin) for engine in evaluated)
    result = assemble_result(plan, engines, store, run=run, failures={})
    return replace(
        result,
        report=report if report.is_file() else None,
        seconds=time.monotonic() - start,
        warnings=(*result.warnings, *waits, *((store.outage,) if store.outage else ())),
    )


def _record_of(plan: Plan, settings: Settings, finished: FinishedBuilds) -> tuple[str | None, tuple[str, ...]]:
    """Return the run that holds this build's record, None for none, and a note if that record is not sent yet.

    Pending records of earlier builds are sent first.
    """
    from engineworks.tracking.runs import open_tracking
    from engineworks.tracking.sending import send_waiting
    from engineworks.tracking.spool import finished_build
    from engineworks.tracking.spooled import waiting_message

    tracking = open_tracking(settings.artifacts, settings.tracking_uri)
    try:
        send_waiting(tracking, settings.artifacts)
        if known := finished.get((plan.recipe, plan.build_key)):
            return known, ()
        runs = tracking.find_runs(recipe=plan.recipe, build_key=plan.build_key, kind="build", limit=5)
    except TrackingError as error:
        waiting = finished_build(settings.artifacts, plan.build_key)
        return (waiting.run_id, (waiting_message(settings.artifacts, error.message),)) if waiting else (None, ())
    return next((run.run_id for run in runs if run.is_complete), None), ()


def load_flows() -> Flows:
    """Load our flows by their entry point. Raises `InputError` where they are not installed."""
    entries = list(entry_points(group="engineworks.flows", name="build"))
    if not entries:
        raise InputError("the flows are not installed", hint="run 'make setup', or pip install -e .")
    flows: Flows = entries[0].load()
    return flows
