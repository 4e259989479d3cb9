"""What the plan decides by precision: whether a target supports it, and which lowering serves it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

from engineworks.engines.backends import backend, backend_facts
from engineworks.engines.backends.base import PartsRunner
from engineworks.engines.capabilities import why_not
from engineworks.fingerprint import digest_of
from engineworks.model.fold.report import FoldReport
from engineworks.plan.documents import Documents
from engineworks.recipe.computation import WORTHWHILE_NODES, Computation, computation
from engineworks.recipe.recipe import Recipe
from engineworks.recipe.targets import NamedTarget
from engineworks.store.store import Store

Uses = Mapping[str, Sequence[str]]
"""A model's uses of its operators, with the names of the nodes (`model/fold/inventory.py`)."""


def known_uses(documents: Documents, store: Store) -> Uses | None:
    """Return how the folded model uses its operators; None if it was not folded before."""
    fold = digest_of(documents.fold(digest_of(documents.export()[0]))[0])
    return stored_uses(store, fold)


def stored_uses(store: Store, fold: str) -> Uses | None:
    """Return the same by the key of the fold step."""
    report = store.peek_report(fold, FoldReport)
    return report.inventory.uses if report else None


def note_unsupported(store: Store, build: str, key: str, message: str) -> None:
    """Record on this host why the builder cannot do this step (its id, its key): it would fail again."""
    store.note_latest(f"{build}/unsupported", {"key": key, "message": message})


def known_unsupported(store: Store, build: str, key: str) -> str | None:
    """Return what was recorded of the same step."""
    noted = store.latest(f"{build}/unsupported")
    return noted["message"] if noted and noted.get("key") == key and "message" in noted else None


def refusal(
    recipe: Recipe, precision: str, target: NamedTarget, uses: Uses | None, *, grows: bool = False
) -> str | None:
    """Return why the target cannot do the precision, or which part of a mixed precision it cannot do. grows: whether a
    decoder's cache grows by concatenation."""
    if recipe.model.decoder is not None and (message := _decoder_refusal(target, grows)) is not None:
        return message
    facts = backend_facts(target.target.backend)
    computes = computation(recipe, precision, target.target.backend)
    quantized = _quantized_operators(computes, frozenset(uses) if uses is not None else None)
    for part in computes.parts:
        message = why_not(
            target.target.backend, facts.version, part, target.target.compute_capability,
            operators=_uses_in(part, computes, uses), quantized=quantized,
        )  # fmt: skip
        if message is not None:
            return message if part == precision or part in computes.quantized else f"{part} around it: {message}"
    return None


GROWS = (
    "its cache grows by concatenation, and a GPU's engines update one of fixed capacity; export the model with "
    "write_indices, or use target cpu"
)


def _decoder_refusal(target: NamedTarget, grows: bool) -> str | None:
    """Return why the target's backend cannot run the decoder, None if it can."""
    name = target.target.backend
    if name == "onnxruntime":
        return None
    if isinstance(backend(name), PartsRunner):
        return GROWS if grows else None
    return f"{backend(name).TITLE} runs no decoders; use a target of ONNX Runtime or TensorRT-RTX, such as cpu"


def _uses_in(part: str, computes: Computation, uses: Uses | None) -> Uses | None:
    """Drop uses of nodes that stay in fp32. Operators as such count wherever they compute."""
    if uses is None or part not in ("fp16", "bf16") or not computes.fp32:
        return uses
    left = {use: [n for n in nodes if not _is_kept(n, use, computes.fp32)] for use, nodes in uses.items() if ":" in use}
    return {use: left.get(use, nodes) for use, nodes in uses.items() if left.get(use, nodes)}


def _is_kept(node: str, use: str, globs: Sequence[str]) -> bool:
    return any(glob == f"op:{use.partition(':')[0]}" or fnmatchcase(node, glob) for glob in globs)


def _quantized_operators(computes: Computation, operators: frozenset[str] | None) -> frozenset[str] | None:
    """Return operators that are certain to be quantized somewhere; None where names of nodes decide."""
    globs = [glob for patterns in computes.quantized.values() for glob in patterns]
    if (
        operators is None
        or globs not in (list(WORTHWHILE_NODES), ["*"])
        or any(not k.startswith("op:") for k in computes.keep)
    ):
        return None
    return operators - {k.removeprefix("op:") for k in computes.keep}


def lower_id(branch: str, computes: Computation) -> str:
    """Return the id of the lowering. One serves all targets unless they want another type for unquantized nodes."""
    half = computes.quantized and computes.unquantized != "fp32"
    return f"{branch}/lower" + (f"-unquantized-{computes.unquantized}" if half else "")
