"""Results for Prefect: the full result for a caller in this process, only a message from a worker."""

from __future__ import annotations

from typing import Any, TypeVar, cast

from prefect.client.schemas.objects import State
from prefect.context import FlowRunContext
from prefect.states import Completed, Failed
from prefect.utilities.annotations import quote

R = TypeVar("R")


def ended(message: str, result: R, *, good: bool) -> State[R]:
    """Return the last state of a flow: `message` is what Prefect shows, `result` its data.

    A worker's run returns only the message. Prefect raises the data of a failed run as an exception, and a TypeError if
    it is none. It also looks for futures in every value of a result, which took a sixth of a build: it is
    wrapped, and `result_of` unwraps it.
    """
    data = None if ordered() else opaque(result)
    return Completed(message=message, data=data) if good else Failed(message=message, data=data)


def result_of(state: State[Any]) -> Any:
    """Return the result that `ended` wrapped, or the exception that ended the flow."""
    data = state.result(raise_on_failure=False)
    return data.unquote() if isinstance(data, quote) else data


def opaque(argument: R) -> R:
    """Wrap an argument of a task so that Prefect does not search it for futures; the task gets it unchanged."""
    return cast(R, quote(argument))


def ordered() -> bool:
    """Return whether this very run is one of a deployment, so that nothing in this process waits for its result.

    Not `prefect.runtime.deployment.id`, which a flow within such a run has too.
    """
    context = FlowRunContext.get()
    return context is not None and context.flow_run is not None and context.flow_run.deployment_id is not None
