"""Listeners to a build's progress. The command line sets one; workers do without."""

from __future__ import annotations

from engineworks.plan.plan import Plan
from engineworks.plan.steps import Step


class Listener:
    """Called from several threads. This one does nothing: the default."""

    def planned(self, plan: Plan) -> None: ...

    def started(self, step: Step) -> None: ...

    def finished(self, step: Step, seconds: float) -> None: ...

    def failed(self, step: Step, message: str) -> None: ...

    def echo(self, line: str) -> None: ...


_listener = Listener()


def listen(listener: Listener) -> None:
    """Report every build of this process to `listener` from now on."""
    global _listener
    _listener = listener


def listener() -> Listener:
    return _listener
