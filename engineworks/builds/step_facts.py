"""The outcome of every step of a plan: its state, duration and inputs. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from engineworks.plan.plan import Plan
from engineworks.typed_json import Record

if TYPE_CHECKING:
    from engineworks.builds.step import Outcome

StepState = Literal["run", "reused", "failed", "skipped", "needs another GPU", "not needed"]


@dataclass(frozen=True)
class StepFact(Record):
    """One step. seconds: of this build, 0 if it did not run. reason: why it ran. inputs: keys of its input steps."""

    id: str
    kind: str
    key: str
    state: StepState
    seconds: float
    reason: str
    inputs: tuple[str, ...]


def step_facts(plan: Plan, outcomes: Iterable[Outcome], failed: Iterable[str]) -> tuple[StepFact, ...]:
    """Return the facts in the plan's order. failed: keys of the failed steps."""
    ended, lost = {o.key: o for o in outcomes}, set(failed)
    facts = []
    for step in plan.steps.values():
        outcome = ended.get(step.key)
        state: StepState
        if step.key in lost:
            state = "failed"
        elif outcome is not None:
            state = outcome.how
        elif step.state in ("needs another GPU", "not needed"):
            state = step.state
        else:
            state = "reused" if step.state == "cached" else "skipped"
        seconds = round(outcome.seconds, 3) if outcome else 0.0
        facts.append(
            StepFact(step.id, step.kind, step.key, state, seconds, step.reason, tuple(step.inputs.values()))
        )  # fmt: skip
    return tuple(facts)
