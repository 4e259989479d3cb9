"""One Prefect task per step of the plan; they differ only in name.

No tags: for every tag of a task Prefect asks its server for a concurrency slot. No cache policy: Prefect's keys hold
the run's id and the task's source, ours hold all that shapes the result.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prefect import Task, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun

from engineworks.builds.progress import listener
from engineworks.builds.retries import DELAYS_S, is_worth_retrying
from engineworks.builds.state import Build
from engineworks.builds.step import Outcome, run_step
from engineworks.host.child import default_pool
from engineworks.plan.kinds import STEP_KINDS, StepName


def execute_step(build: Build, step_id: str, key: str) -> Outcome:
    """Run the step with this key; the store decides whether there is anything to do."""
    step, progress = build.plan.steps[key], listener()
    progress.started(step)
    outcome = run_step(step, build.store, default_pool(), echo=progress.echo)
    progress.finished(step, outcome.seconds)
    return outcome


def may_retry(_task: Task[..., Any], _run: TaskRun, state: State[Any]) -> bool:
    """Decide by its error whether Prefect runs a failed step again."""
    error = state.result(raise_on_failure=False)
    return isinstance(error, BaseException) and is_worth_retrying(error)


def _task_of(kind: StepName) -> Task[[Build, str, str], Outcome]:
    return task(
        name=kind,
        task_run_name="{step_id}",
        cache_policy=NO_CACHE,
        retries=len(DELAYS_S),
        retry_delay_seconds=list(DELAYS_S),
        retry_condition_fn=may_retry,
    )(execute_step)


STEP_TASKS: Mapping[StepName, Task[[Build, str, str], Outcome]] = {kind: _task_of(kind) for kind in STEP_KINDS}
