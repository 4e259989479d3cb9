"""The order in which steps may run: pure, so that any executor can follow it.

A step may start when all its inputs are done. A step whose input failed is skipped. Measuring steps run last and one at
a time, because any other step would disturb them. A step that exceeds the memory left waits while others run; one that
never fits runs alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Iterable, Mapping, Sequence

from engineworks.plan.kinds import STEP_KINDS
from engineworks.plan.plan import Plan
from engineworks.plan.steps import Step


def _alone(step: Step) -> bool:
    return STEP_KINDS[step.kind].alone


class Schedule:
    """Hands out the steps to do; callers report how each one ended.

    keys: hand out only these. lost: steps that failed before. need: the memory in MiB that a step is expected to take;
    asked only of steps whose inputs are done.
    """

    def __init__(
        self,
        plan: Plan,
        keys: Container[str] | None = None,
        *,
        lost: Iterable[str] = (),
        need: Callable[[Step], float] = lambda _: 0.0,
    ) -> None:
        self._need = need
        self._needs: dict[str, float] = {}
        self._large: str | None = None
        self._steps: Mapping[str, Step] = plan.steps
        gone = set(lost)
        self._lost: set[str] = {key for key in self._steps if gone & plan.closure([key])} if gone else gone
        chosen = [s for s in plan.to_do if keys is None or s.key in keys]
        self._waiting: dict[str, Step] = {s.key: s for s in chosen if s.key not in self._lost}
        self._running: dict[str, Step] = {}
        self.skipped: list[Step] = []

    def ready(self, room: int, available_mib: float = math.inf) -> Sequence[Step]:
        """Return steps to start now, so that at most `room` run at once; each is handed out once.

        available_mib: memory that is free now. The whole expected need of running steps is subtracted, although they
        hold some of it already. Starting too few steps is better than an out-of-memory kill.
        """
        self._drop_lost()
        if self._large or any(map(_alone, self._running.values())):
            return ()
        unfinished = self._waiting.keys() | self._running.keys()
        free = [s for s in self._waiting.values() if unfinished.isdisjoint(s.inputs.values())]
        shared = self._fitting([s for s in free if not _alone(s)], room, available_mib)
        alone = [s for s in free if _alone(s)][:1]
        chosen = shared
        if not shared and not self._running and all(map(_alone, self._waiting.values())):
            chosen = alone
        for step in chosen:
            self._running[step.key] = self._waiting.pop(step.key)
        return tuple(chosen)

    @property
    def large(self) -> tuple[Step, float] | None:
        """The step that runs alone because it exceeds the memory, and its expected need in MiB."""
        return (self._running[self._large], self._needs[self._large]) if self._large else None

    def done(self, key: str) -> None:
        self._running.pop(key, None)
        self._large = None if key == self._large else self._large

    def failed(self, key: str) -> None:
        self.done(key)
        self._lost.add(key)

    def drop(self, plan: Plan) -> None:
        """Drop steps that this later version of the plan no longer needs."""
        for key in [k for k in self._waiting if plan.steps[k].state != "to do"]:
            del self._waiting[key]

    @property
    def finished(self) -> bool:
        self._drop_lost()
        return not self._waiting and not self._running

    def _fitting(self, steps: Sequence[Step], room: int, available_mib: float) -> list[Step]:
        """Return those that fit into memory with the running steps; if nothing runs and none fits, only the first."""
        left = available_mib - sum(self._needs.get(key, 0.0) for key in self._running)
        chosen: list[Step] = []
        for step in steps:
            if len(chosen) + len(self._running) >= room:
                break
            need = self._needs[step.key] = self._need(step)
            if need <= max(0.0, left):
                chosen.append(step)
                left -= need
        if steps and not chosen and not self._running:
            chosen = [steps[0]]
            self._large = steps[0].key
        return chosen

    def _drop_lost(self) -> None:
        """Skip steps that can never run, and those that need them."""
        while lost := [s for s in self._waiting.values() if self._lost & set(s.inputs.values())]:
            for step in lost:
                del self._waiting[step.key]
                self._lost.add(step.key)
                self.skipped.append(step)
