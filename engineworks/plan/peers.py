"""The peers that a build compares its engines with: one step per peer and precision, or why there is none."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from engineworks.engines.peers import peer
from engineworks.engines.peers.base import GeneratingPeer
from engineworks.plan.documents import Documents
from engineworks.plan.kinds import StepName
from engineworks.recipe.computation import Computation

Add = Callable[[StepName, str, Mapping[str, Any], Mapping[str, Any]], str]
"""Kind, id, document, unkeyed → the step's key, after adding the step to the plan."""


@dataclass(frozen=True)
class PlannedPeer:
    """One peer in one precision. id: such as 'digits/peer/pytorch-fp16'. step: key of its step; None where it cannot
    run here, for the reason in `why_not`."""

    id: str
    name: str
    title: str
    precision: str
    step: str | None = None
    why_not: str = ""

    def to_json(self) -> dict[str, object]:
        return {
            "id": self.id, "peer": self.name, "precision": self.precision, "step": self.step, "why_not": self.why_not,
        }  # fmt: skip


def plan_peers(documents: Documents, names: Sequence[str], add: Add) -> tuple[PlannedPeer, ...]:
    """Plan the named peers, each in its precisions."""
    wanted = documents.recipe.precisions
    return tuple(_planned(documents, name, p, add) for name in names for p in peer(name).precisions(wanted))


def _planned(documents: Documents, name: str, precision: str, add: Add) -> PlannedPeer:
    module, recipe_id = peer(name), f"{documents.name}/peer/{name}-{precision}"
    why = _generates(documents, name) or module.why_not(documents.loaded.files.kind, precision)
    if not why and not documents.recipe.performance.at:
        why = "the recipe names no shapes under performance.at"
    if why:
        return PlannedPeer(recipe_id, name, module.TITLE, precision, why_not=why)
    inputs = _inputs(documents, precision, add, from_source=module.FROM_SOURCE)
    step = add("peer", recipe_id, *documents.peer(name, precision, inputs))
    return PlannedPeer(recipe_id, name, module.TITLE, precision, step)


def _generates(documents: Documents, name: str) -> str:
    """Return why the peer cannot generate text, or does nothing else."""
    if documents.recipe.model.decoder is None:
        return "it runs decoder language models only" if name == "genai" else ""
    return "" if isinstance(peer(name), GeneratingPeer) else "it does not generate text"


def _inputs(documents: Documents, precision: str, add: Add, *, from_source: bool) -> dict[str, str]:
    """Return the steps that the engines need too: nothing is exported, folded or lowered twice."""
    recipe, variant = documents.name, documents.variant
    export = add("export", f"{recipe}/export{variant}", *documents.export())
    fold = add("fold", f"{recipe}/fold{variant}", *documents.fold(export))
    inputs = {"reference": add("reference", f"{recipe}/reference{variant}", *documents.reference(fold))}
    if from_source:
        return inputs
    if precision == "fp32":
        return {**inputs, "model": fold}
    lowered = documents.lower(precision, Computation(precision), fold, None)
    lower = add("lower", f"{recipe}/{precision}/lower{variant}", *lowered)
    return {**inputs, "model": lower}
