"""Tied dimensions of a decoder's ONNX file: one that is the sum of others, such as total = past + sequence. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from engineworks.errors import ModelError
from engineworks.tensors import TensorSpec

Term = Literal["past", "sequence"] | int
"""Positions that the cache holds, new tokens, or a number of positions."""

WHOLE: tuple[Term, ...] = ("past", "sequence")


def total_of(terms: Sequence[Term], past: int, sequence: int) -> int:
    """Return the length of a tied dimension."""
    lengths = {"past": past, "sequence": sequence}
    return sum(term if isinstance(term, int) else lengths[term] for term in terms)


def read_ties(
    ties: Mapping[str, str], sequence: str, past: str, tied: Mapping[str, Sequence[TensorSpec]]
) -> dict[str, tuple[Term, ...]]:
    """Return the terms by dimension. sequence, past: the file's own names for the lengths of token ids and cache. tied:
    tensors with each dimension that may be tied.

    Raises `ModelError` where a tie names another dimension.
    """
    found = {}
    for name, text in ties.items():
        if name not in tied:
            known = ", ".join(tied) or "none"
            raise ModelError(
                f"no mask and no output of the cache has a dimension '{name}', which model.decoder.ties names",
                hint=f"there are: {known}",
            )
        found[name] = tuple(_term(part.strip(), f"{name} = {text}", sequence, past) for part in text.split("+"))
    return found


def _term(part: str, tie: str, sequence: str, past: str) -> Term:
    if part.isdecimal():
        return int(part)
    if part == past:
        return "past"
    if part == sequence:
        return "sequence"
    raise ModelError(
        f"the tie '{tie}' names '{part}', which is the length of neither the token ids nor the cache",
        hint=f"they are '{sequence}' and '{past}'",
    )


def check_shapes(
    ties: Mapping[str, Sequence[Term]], outputs: Sequence[TensorSpec], made: Mapping[str, Any], past: int, sequence: int
) -> None:
    """Raises `ModelError` where an output of a run has another length than its tie says. made: arrays by name."""
    for spec in outputs:
        for axis, dim in enumerate(spec.shape):
            terms = ties.get(str(dim))
            if terms is None or made[spec.name].shape[axis] == (wanted := total_of(terms, past, sequence)):
                continue
            raise ModelError(
                f"the tie of '{dim}' does not hold: '{spec.name}' has {made[spec.name].shape[axis]} there for {past} "
                f"positions and {sequence} new tokens, not {wanted}",
                hint="correct model.decoder.ties",
            )
