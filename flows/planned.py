"""Flow runs of plans that the command made already."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from prefect import Flow, flow, tags
from prefect.client.schemas.objects import State
from prefect.context import TagsContext
from prefect.runtime import flow_run

from engineworks.plan.plan import Plan

R = TypeVar("R")


def run_name() -> str:
    """Name a flow run after its recipe: 'digits' for recipes/digits.yaml."""
    return Path(str(flow_run.parameters["recipe"])).stem


def run_planned(
    like: Flow[..., Any], plan: Plan, only: str | None, body: Callable[[], State[R]], **options: Any
) -> State[R]:
    """Run `body` as a flow run with the name and the parameters of the flow `like`.

    The closure carries the command's plan and settings, because Prefect stores parameters. options: further parameters
    to show.
    """

    @flow(name=like.name, flow_run_name=run_name, task_runner=like.task_runner)
    def planned(recipe: str, only: str | None, options: dict[str, Any]) -> State[R]:
        del recipe, only, options  # for Prefect's pages
        with TagsContext(current_tags=set()):  # of task runs, none: see `run_steps`
            return body()

    with tags("engineworks", like.name):  # those of the deployments
        state: State[Any] = planned(str(plan.loaded.path), only, options, return_state=True)
    return state
