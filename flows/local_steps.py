"""The steps of a build in this process: each in a child once its inputs exist, two at a time."""

from __future__ import annotations

import queue
from collections.abc import Container
from contextlib import suppress
from typing import Any

from prefect.futures import PrefectFuture
from prefect.task_runners import ThreadPoolTaskRunner

from engineworks.builds.memory_guard import available_mib, needs_of
from engineworks.builds.progress import listener
from engineworks.builds.results import Failure
from engineworks.builds.schedule import Schedule
from engineworks.builds.state import Build
from engineworks.builds.step import Outcome
from engineworks.errors import EXIT_DEFECT, EngineworksError, PrecisionError, UnsupportedError
from engineworks.host.child import default_pool
from engineworks.plan.plan import none_left
from engineworks.plan.precisions import note_unsupported
from engineworks.plan.refusals import refuse_folded
from engineworks.plan.steps import Step
from tasks.run_steps import STEP_TASKS

MAX_PARALLEL = 2
"""Maximum number of concurrent steps, each in its own child; measuring runs alone."""

POLL_S = 1.0
"""Interval of looks at the memory that is free, while a step waits for it."""


RUNNER: ThreadPoolTaskRunner[Any] = ThreadPoolTaskRunner(max_workers=MAX_PARALLEL + 1)
"""One more thread than steps, to open the record meanwhile."""


def run_steps(build: Build, keys: Container[str] | None = None) -> None:
    """Run the steps to do, each once its inputs exist; a failure stops only what needs it.

    keys: run only these; their inputs exist, or have failed.
    """
    schedule = Schedule(build.plan, keys, lost=build.failures, need=needs_of(build.store))
    running: dict[PrefectFuture[Outcome], Step] = {}
    ended: queue.SimpleQueue[PrefectFuture[Outcome]] = queue.SimpleQueue()
    try:
        while not schedule.finished:
            free_mib = available_mib()
            for step in schedule.ready(MAX_PARALLEL, free_mib):
                _say_if_large(schedule, free_mib)
                future = STEP_TASKS[step.kind].submit(build, step.id, step.key)
                running[future] = step
                future.add_done_callback(ended.put)
            with suppress(queue.Empty):
                future = ended.get(timeout=POLL_S)
                _take(build, schedule, running.pop(future), future.result(raise_on_failure=False))
    except BaseException:
        default_pool().cancel_all()
        raise


def _say_if_large(schedule: Schedule, free_mib: float) -> None:
    if schedule.large:
        step, need_mib = schedule.large
        listener().echo(
            f"{step.id} runs alone: it may need {need_mib:.0f} MiB of memory and {free_mib:.0f} MiB are available"
        )


def _take(build: Build, schedule: Schedule, step: Step, result: object) -> None:
    """Record a step's outcome, or the exception that ended it."""
    if isinstance(result, Outcome):
        build.outcomes.append(result)
        schedule.done(step.key)
        if step.kind == "fold":
            _refuse_folded(build, schedule)
        return
    if isinstance(result, EngineworksError):
        log = str(getattr(result, "log", ""))
        inapplicable = result.message if isinstance(result, PrecisionError) else ""
        failure = Failure(step.id, str(result), log, result.exit_code, inapplicable)
    else:
        failure = Failure(step.id, f"{step.id} ended without a result: {result}", exit_code=EXIT_DEFECT)
    if isinstance(result, UnsupportedError):
        note_unsupported(build.store, step.id, step.key, failure.message)
    build.failures[step.key] = failure
    schedule.failed(step.key)
    listener().failed(step, failure.message)


def _refuse_folded(build: Build, schedule: Schedule) -> None:
    """Refuse what the folded model rules out, before lowering or building anything for it."""
    before = len(build.plan.refused)
    build.plan = refuse_folded(build.plan, build.store)
    refused = build.plan.refused[before:]
    for refusal in refused:
        listener().echo(f"{refusal.id}: refused: {refusal.message}")
    if refused and not build.plan.engines:
        raise none_left({refusal.id: refusal.message for refusal in build.plan.refused})
    schedule.drop(build.plan)
