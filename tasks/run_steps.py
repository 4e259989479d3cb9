"""One Prefect task per step of the plan; they differ in name and tags alone."""

from __future__ import annotations

from collections.abc import Mapping

from prefect import Task, task
from prefect.cache_policies import NO_CACHE

from engineworks.child import default_pool
from engineworks.execute import Outcome, run_step
from engineworks.plan import Step
from engineworks.progress import listener
from engineworks.steps import STEP_KINDS, StepName
from engineworks.store import open_store


def execute_step(step: Step, store: str) -> Outcome:
    """Run the step; the store decides whether there is anything to do. Prefect's own cache is not used: its keys
    hold the run's id and a task's own lines, ours hold all that shapes the result."""
    told = listener()
    told.started(step)
    outcome = run_step(step, open_store(store), default_pool(), say=told.say)
    told.finished(step, outcome.seconds)
    return outcome


def _task_of(kind: StepName) -> Task[[Step, str], Outcome]:
    tags = ["engineworks", "target" if STEP_KINDS[kind].engine else "prepare"]
    return task(name=kind, task_run_name="{step.id}", tags=tags, cache_policy=NO_CACHE)(execute_step)


STEP_TASKS: Mapping[StepName, Task[[Step, str], Outcome]] = {kind: _task_of(kind) for kind in STEP_KINDS}
