"""The main job: one recipe → gated, recorded engines. Order and fan-out only; the work is in tasks.

Parameters are plain values, so that the same flow runs from the command line and from a deployment. Places come from
the environment (ENGINEWORKS_ARTIFACTS and its kin).
"""

from __future__ import annotations

import queue
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.futures import PrefectFuture
from prefect.runtime import flow_run
from prefect.states import Completed, Failed
from prefect.task_runners import ThreadPoolTaskRunner

from engineworks.child import default_pool
from engineworks.errors import EngineworksError
from engineworks.execute import Outcome
from engineworks.plan import Plan, Step
from engineworks.progress import listener
from engineworks.results import BuildResult, EngineResult, Failure, StepCounts
from engineworks.schedule import Schedule
from engineworks.settings import Settings, read_settings
from engineworks.tracking import BuildRun, open_tracking
from tasks.gate_engine import gate_engine
from tasks.plan_build import plan_build
from tasks.record_build import end_record, record_engine, start_record
from tasks.report_build import report_build
from tasks.run_steps import STEP_TASKS

ROOM = 2
"""Steps that run beside each other, each in a child of its own; measuring runs alone."""

POLL_S = 0.2


RUNNER: ThreadPoolTaskRunner[Any] = ThreadPoolTaskRunner(max_workers=ROOM + 1)
"""One more thread than steps: the record is opened beside them."""


@flow(
    name="build-recipe",
    flow_run_name="{recipe}",
    task_runner=RUNNER,  # type: ignore[arg-type]  # TaskRunner is invariant in its kind of future
)
def build_recipe(recipe: str, only: str | None = None) -> State[BuildResult]:
    """Build every engine of the recipe file that `only` (a glob over ids) selects.

    Everything is recorded first; then the flow ends failed if a step or a gate failed.
    """
    start = time.monotonic()
    settings = read_settings()
    tracking = open_tracking(settings.artifacts, settings.tracking_uri)
    tracking.prestart()
    plan = plan_build(Path(recipe), settings, only)
    listener().planned(plan)
    recording = start_record.submit(plan, tracking, str(flow_run.get_id() or ""))
    try:
        progress = run_steps(plan, settings)
    except BaseException:
        with recording.result():  # ends the record: KILLED or FAILED
            raise
    with recording.result() as run:
        result = _record(plan, run, settings, progress, start)
    words = ", ".join(f"{e.id}: {e.verdict}" for e in result.engines)
    if result.exit_code() == 0:
        return Completed(message=words, data=result)
    return Failed(message=words, data=result)


@dataclass
class StepRun:
    """What became of the steps of one plan."""

    outcomes: list[Outcome] = field(default_factory=list)
    failures: dict[str, Failure] = field(default_factory=dict)

    def counts(self, plan: Plan) -> StepCounts:
        cached = sum(1 for s in plan.steps.values() if s.state == "cached")
        ran = sum(1 for o in self.outcomes if o.how == "run")
        return StepCounts(ran, cached + len(self.outcomes) - ran, len(self.failures))


def run_steps(plan: Plan, settings: Settings) -> StepRun:
    """Run what is to do, each step when its inputs are there; a failure stops only what stands on it."""
    schedule, progress = Schedule(plan), StepRun()
    running: dict[PrefectFuture[Outcome], Step] = {}
    ended: queue.SimpleQueue[PrefectFuture[Outcome]] = queue.SimpleQueue()
    try:
        while not schedule.finished:
            for step in schedule.ready(ROOM):
                future = STEP_TASKS[step.kind].submit(step, settings.store)
                running[future] = step
                future.add_done_callback(ended.put)
            _take_ended(ended, running, schedule, progress)
    except BaseException:
        default_pool().cancel_all()
        raise
    return progress


def _take_ended(
    ended: queue.SimpleQueue[PrefectFuture[Outcome]],
    running: dict[PrefectFuture[Outcome], Step],
    schedule: Schedule,
    progress: StepRun,
) -> None:
    """Wait a moment for a step to end; short, so that Ctrl-C is heard."""
    try:
        future = ended.get(timeout=POLL_S)
    except queue.Empty:
        return
    step = running.pop(future)
    result: object = future.result(raise_on_failure=False)
    if isinstance(result, Outcome):
        progress.outcomes.append(result)
        schedule.done(step.key)
    else:
        progress.failures[step.key] = _failure(step, result)
        schedule.failed(step.key)
        listener().failed(step, progress.failures[step.key].message)


def _failure(step: Step, error: object) -> Failure:
    if isinstance(error, EngineworksError):
        return Failure(step.id, str(error), str(getattr(error, "log", "")), error.exit_code)
    return Failure(step.id, f"{step.id} ended without a result: {error}")


def _record(plan: Plan, run: BuildRun, settings: Settings, progress: StepRun, start: float) -> BuildResult:
    engines = [_gate_and_record(plan, run, settings.store, progress.failures, e.id) for e in plan.engines]
    result = BuildResult(
        recipe=plan.recipe,
        run=run.run_id,
        engines=tuple(engines),
        refused=plan.refused,
        steps=progress.counts(plan),
        seconds=time.monotonic() - start,
    )
    result = report_build(result, settings.runs / run.run_id)
    end_record(run, plan, result)
    return result


def _gate_and_record(
    plan: Plan, run: BuildRun, store: str, failures: Mapping[str, Failure], engine_id: str
) -> EngineResult:
    engine = next(e for e in plan.engines if e.id == engine_id)
    result = gate_engine(plan, engine, store, failures)
    record_engine(run, plan, result)
    return result
