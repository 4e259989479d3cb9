"""In which order steps may run: pure, so that any executor can follow it.

A step may start when all its inputs are done. A step whose input failed is skipped. Measuring steps wait until
nothing else is left, and then run one at a time: anything beside them would be in their figures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from engineworks.plan import Plan, Step

ALONE = ("measure", "duel", "peer")
"""Steps that must have the machine for themselves."""


class Schedule:
    """Hands out the steps that are to do; tell it what became of each."""

    def __init__(self, plan: Plan) -> None:
        self._steps: Mapping[str, Step] = plan.steps
        self._waiting: dict[str, Step] = {s.key: s for s in plan.to_do}
        self._running: dict[str, Step] = {}
        self._lost: set[str] = set()
        self.skipped: list[Step] = []

    def ready(self, room: int) -> Sequence[Step]:
        """Steps to start now, at most `room` beside those that run; each is handed out once."""
        self._drop_lost()
        if any(s.kind in ALONE for s in self._running.values()):
            return ()
        free = [s for s in self._waiting.values() if not self._blocked(s)]
        shared = [s for s in free if s.kind not in ALONE][: max(0, room - len(self._running))]
        alone = [s for s in free if s.kind in ALONE][:1]
        chosen = shared
        if not shared and not self._running and all(s.kind in ALONE for s in self._waiting.values()):
            chosen = alone
        for step in chosen:
            self._running[step.key] = self._waiting.pop(step.key)
        return tuple(chosen)

    def done(self, key: str) -> None:
        self._running.pop(key, None)

    def failed(self, key: str) -> None:
        self._running.pop(key, None)
        self._lost.add(key)

    @property
    def finished(self) -> bool:
        self._drop_lost()
        return not self._waiting and not self._running

    def _blocked(self, step: Step) -> bool:
        return any(k in self._waiting or k in self._running for k in step.inputs.values())

    def _drop_lost(self) -> None:
        """Skip what can never run, and what stands on that."""
        while lost := [s for s in self._waiting.values() if self._lost & set(s.inputs.values())]:
            for step in lost:
                del self._waiting[step.key]
                self._lost.add(step.key)
                self.skipped.append(step)
