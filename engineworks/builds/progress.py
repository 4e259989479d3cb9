"""Listeners to a build's progress. The command line sets one; workers do without."""

from __future__ import annotations

from typing import Protocol

from engineworks.plan.plan import Plan
from engineworks.plan.steps import Step


class Listener(Protocol):
    """Called from several threads."""

    def planned(self, plan: Plan) -> None: ...

    def started(self, step: Step) -> None: ...

    def finished(self, step: Step, seconds: float) -> None: ...

    def failed(self, step: Step, message: str) -> None: ...

    def echo(self, line: str) -> None: ...


class Silent:
    """The default listener: it does nothing."""

    def planned(self, plan: Plan) -> None:
        pass

    def started(self, step: Step) -> None:
        pass

    def finished(self, step: Step, seconds: float) -> None:
        pass

    def failed(self, step: Step, message: str) -> None:
        pass

    def echo(self, line: str) -> None:
        pass


_listener: Listener = Silent()


def listen(listener: Listener) -> None:
    """Report every build of this process to `listener` from now on."""
    global _listener
    _listener = listener


def listener() -> Listener:
    return _listener
