"""How a flow ends: with its result for who called it in this process, with words alone where a worker runs it."""

from __future__ import annotations

from typing import TypeVar

from prefect.client.schemas.objects import State
from prefect.context import FlowRunContext
from prefect.states import Completed, Failed

R = TypeVar("R")


def ended(words: str, result: R, *, good: bool) -> State[R]:
    """The last state of a flow: `words` are its message, `result` its data.

    Of a failed run that a worker carries out Prefect raises its data as an exception, and a TypeError where it is none:
    there the words are all.
    """
    if good:
        return Completed(message=words, data=result)
    return Failed(message=words, data=None if ordered() else result)


def ordered() -> bool:
    """Whether this very run is one of a deployment, so that nobody in this process waits for its result.

    Not `prefect.runtime.deployment.id`: a flow within such a run would have that too.
    """
    context = FlowRunContext.get()
    return context is not None and context.flow_run is not None and context.flow_run.deployment_id is not None
