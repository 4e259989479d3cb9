"""What plan decides by precision: whether a target can do it, and which lowering serves it."""

from __future__ import annotations

from engineworks.backends import backend_facts
from engineworks.capabilities import why_not
from engineworks.fingerprint import digest_of
from engineworks.plan.documents import Documents
from engineworks.precisions import WORTHWHILE_NODES, Computation, computation
from engineworks.recipe import Recipe
from engineworks.store import Store
from engineworks.targets import NamedTarget

FOLD_REPORT = "fold.json"


def known_operators(documents: Documents, store: Store) -> frozenset[str] | None:
    """The folded model's operator types, if it was folded before; None while they are not known."""
    fold = digest_of(documents.fold(digest_of(documents.export()[0]))[0])
    report = store.peek_json(fold, FOLD_REPORT)
    return frozenset(report["inventory"]["operators"]) if report else None


def refusal(recipe: Recipe, precision: str, target: NamedTarget, operators: frozenset[str] | None) -> str | None:
    """Why the target can not do the precision; of a mixture, or of what lies around int8, why not that part."""
    facts = backend_facts(target.target.backend)
    computes = computation(recipe, precision, target.target.backend)
    for part in computes.parts:
        sentence = why_not(
            target.target.backend, facts.version, part, target.target.compute_capability,
            operators=operators, quantized=_quantized_operators(computes, operators),
        )  # fmt: skip
        if sentence is not None:
            return sentence if part == precision or part in computes.quantized else f"{part} around it: {sentence}"
    return None


def _quantized_operators(computes: Computation, operators: frozenset[str] | None) -> frozenset[str] | None:
    """Those that are sure to be quantized somewhere; None where names of nodes decide."""
    globs = [glob for patterns in computes.quantized.values() for glob in patterns]
    if (
        operators is None
        or globs not in (list(WORTHWHILE_NODES), ["*"])
        or any(not k.startswith("op:") for k in computes.keep)
    ):
        return None
    return operators - {k.removeprefix("op:") for k in computes.keep}


def lower_id(branch: str, computes: Computation) -> str:
    """One lowering serves all targets but where they want another type around quantized nodes."""
    half = computes.quantized and computes.around != "fp32"
    return f"{branch}/lower" + (f"-around-{computes.around}" if half else "")
