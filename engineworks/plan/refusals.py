"""Engines that their target turns out not to support, after folding the model or by the builder's report."""

from __future__ import annotations

from dataclasses import replace

from engineworks.plan.plan import Plan, Refused
from engineworks.plan.precisions import refusal, stored_uses
from engineworks.store.store import Store


def refuse_folded(plan: Plan, store: Store) -> Plan:
    """Drop the engines that the folded model's operators rule out, and steps that only those needed. The store has the
    operators' inventory now."""
    fold = next((key for key, step in plan.steps.items() if step.kind == "fold"), "")
    uses = stored_uses(store, fold)
    reasons = {e.id: refusal(plan.loaded.recipe, e.precision, e.target, uses) for e in plan.engines}
    refused = tuple(Refused(engine, message) for engine, message in reasons.items() if message)
    if not refused:
        return plan
    engines = tuple(e for e in plan.engines if not reasons[e.id])
    left = replace(plan, engines=engines, refused=(*plan.refused, *refused))
    needed = left.closure(left.goals)
    idle = {key: step for key, step in plan.steps.items() if key not in needed and step.state == "to do"}
    why = "the engine that needs it is refused"
    skipped = {key: replace(step, state="not needed", reason=why) for key, step in idle.items()}
    return replace(left, steps={**plan.steps, **skipped})
