"""What Prefect is given: a result for who called the flow in this process, words alone where a worker runs it."""

from __future__ import annotations

from typing import TypeVar, cast

from prefect.client.schemas.objects import State
from prefect.context import FlowRunContext
from prefect.states import Completed, Failed
from prefect.utilities.annotations import quote

R = TypeVar("R")


def ended(words: str, result: R, *, good: bool) -> State[R]:
    """The last state of a flow: `words` are its message, `result` its data.

    Where a worker carries the run out the words are all. Prefect raises the data of a failed run as an exception, and a
    TypeError where it is none; and it looks for futures in every value of a result, which takes longer than some flows.
    """
    data = None if ordered() else result
    return Completed(message=words, data=data) if good else Failed(message=words, data=data)


def opaque(argument: R) -> R:
    """An argument of a task in which Prefect looks for no futures; the task gets it as it is."""
    return cast(R, quote(argument))


def ordered() -> bool:
    """Whether this very run is one of a deployment, so that nothing in this process waits for its result.

    Not `prefect.runtime.deployment.id`: a flow within such a run would have that too.
    """
    context = FlowRunContext.get()
    return context is not None and context.flow_run is not None and context.flow_run.deployment_id is not None
