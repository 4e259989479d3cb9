"""The outcome of every step of a plan: its state, duration and inputs. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from engineworks.plan.plan import Plan

if TYPE_CHECKING:
    from engineworks.builds.step import Outcome

StepState = Literal["run", "reused", "failed", "skipped", "needs another GPU", "not needed"]


@dataclass(frozen=True)
class StepFact:
    """One step. seconds: of this build, 0 if it did not run. reason: why it ran. inputs: keys of its input steps."""

    id: str
    kind: str
    key: str
    state: StepState
    seconds: float
    reason: str
    inputs: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "seconds": round(self.seconds, 3), "inputs": list(self.inputs)}


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
        seconds = outcome.seconds if outcome else 0.0
        facts.append(
            StepFact(step.id, step.kind, step.key, state, seconds, step.reason, tuple(step.inputs.values()))
        )  # fmt: skip
    return tuple(facts)


def step_fact_from_json(value: Mapping[str, Any]) -> StepFact:
    return StepFact(**{**value, "inputs": tuple(value["inputs"])})
