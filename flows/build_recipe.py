"""The main job: one recipe → gated, recorded engines. Order and fan-out only; the work is in tasks.

Parameters are plain values, so that the same flow runs from the command line and from a deployment. Places come from
the environment (ENGINEWORKS_ARTIFACTS and its kin).
"""

from __future__ import annotations

import queue
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.futures import PrefectFuture
from prefect.runtime import flow_run
from prefect.states import Completed, Failed
from prefect.task_runners import ThreadPoolTaskRunner

from engineworks.build_state import Build
from engineworks.child import default_pool
from engineworks.errors import EXIT_DEFECT, EngineworksError
from engineworks.execute import Outcome
from engineworks.plan import Step
from engineworks.progress import listener
from engineworks.results import BuildResult, Failure
from engineworks.schedule import Schedule
from engineworks.settings import read_settings
from engineworks.tracking import BuildRun
from tasks.conclude_engine import conclude_engine
from tasks.plan_build import plan_build
from tasks.record_build import end_record, start_record
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
def build_recipe(recipe: str, only: str | None = None, compare: str | None = None) -> State[BuildResult]:
    """Build every engine of the recipe file that `only` (a glob over ids) selects, and measure the peers that `compare`
    names ('pytorch,ort-cpu') beside them.

    Everything is recorded first; then the flow ends failed if a step or a gate failed.
    """
    build = plan_build(Path(recipe), read_settings(), only, compare)
    listener().planned(build.plan)
    result = build_and_judge(build, str(flow_run.get_id() or ""))
    words = ", ".join(f"{e.id}: {e.word}" for e in result.engines)
    if result.exit_code() == 0:
        return Completed(message=words, data=result)
    return Failed(message=words, data=result)


def build_and_judge(build: Build, flow_run_id: str) -> BuildResult:
    """Run the steps, judge every engine and record it all."""
    recording = start_record.submit(build, build.plan.recipe, flow_run_id)
    try:
        run_steps(build)
    except BaseException:
        with recording.result():  # ends the record: KILLED or FAILED
            raise
    with recording.result() as run:
        return gate_and_record(build, run)


def run_steps(build: Build) -> None:
    """Run what is to do, each step when its inputs are there; a failure stops only what stands on it."""
    schedule = Schedule(build.plan)
    running: dict[PrefectFuture[Outcome], Step] = {}
    ended: queue.SimpleQueue[PrefectFuture[Outcome]] = queue.SimpleQueue()
    try:
        while not schedule.finished:
            for step in schedule.ready(ROOM):
                future = STEP_TASKS[step.kind].submit(build, step.id, step.key)
                running[future] = step
                future.add_done_callback(ended.put)
            with suppress(queue.Empty):
                future = ended.get(timeout=POLL_S)
                _take(build, schedule, running.pop(future), future.result(raise_on_failure=False))
    except BaseException:
        default_pool().cancel_all()
        raise


def _take(build: Build, schedule: Schedule, step: Step, result: object) -> None:
    """Note what came of a step: its outcome, or the exception that ended it."""
    if isinstance(result, Outcome):
        build.outcomes.append(result)
        schedule.done(step.key)
        return
    if isinstance(result, EngineworksError):
        failure = Failure(step.id, str(result), str(getattr(result, "log", "")), result.exit_code)
    else:
        failure = Failure(step.id, f"{step.id} ended without a result: {result}", exit_code=EXIT_DEFECT)
    build.failures[step.key] = failure
    schedule.failed(step.key)
    listener().failed(step, failure.message)


def gate_and_record(build: Build, run: BuildRun) -> BuildResult:
    """Judge and record every engine, then the build."""
    for engine in build.plan.engines:
        build.engines[engine.id] = conclude_engine(build, run, engine.id)
    report = report_build(build, build.plan.recipe, run.run_id)
    end_record(build, run, build.plan.recipe)
    return replace(build.result(run.run_id), report=report)
