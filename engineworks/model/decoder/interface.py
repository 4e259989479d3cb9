"""How a decoder with a KV cache is fed: which inputs are tokens and positions, which tensors are its cache.

Two forms of a cache are known. `in_place`: fixed capacity; `write_indices` [batch] says where each row's new keys and
values go, and input and output may be the same memory. `growing`: the output is the input with the new part appended.
A dimension may be tied: the sum of others, such as total = past + sequence.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Literal

from engineworks.errors import ModelError
from engineworks.tensors import Dim, TensorSpec
from engineworks.typed_json import Record

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


DECODER_FILE = "decoder.json"

IDS, POSITIONS, LOGITS = "input_ids", "write_indices", "logits"
"""Names in the graphs that this package exports."""

Form = Literal["in_place", "growing"]


@dataclass(frozen=True)
class CacheTensor(Record):
    """One tensor of the cache.

    shape: lengths and names of dimensions. batch, length: the axes that count sequences and positions.
    """

    input: str
    output: str
    dtype: str
    shape: tuple[Dim, ...]
    batch: int
    length: int

    def concrete(self, batch: int, length: int) -> tuple[int, ...]:
        """Return the shape for so many sequences and positions."""
        given = {self.batch: batch, self.length: length}
        return tuple(given.get(axis, int(d) if isinstance(d, int) else 1) for axis, d in enumerate(self.shape))


@dataclass(frozen=True)
class DecoderInterface(Record):
    """A decoder's tensors.

    context: positions of the cache. mask: input of ones [batch, past + sequence], unless mask_terms say otherwise;
    ties: terms by name of a dimension, as the recipe says; position_ids: input of positions
    [batch, sequence]; both '' where the graph has none. vocabulary: length of the logits. lone_appends: several tokens
    can be appended to a sequence that is not empty only in a batch of one (GroupQueryAttention).
    """

    form: Form
    context: int
    vocabulary: int
    caches: tuple[CacheTensor, ...]
    ids: str = IDS
    logits: str = LOGITS
    positions: str = ""
    mask: str = ""
    position_ids: str = ""
    notes: tuple[str, ...] = field(default=())
    lone_appends: bool = False
    mask_terms: tuple[Term, ...] = WHOLE
    ties: Mapping[str, tuple[Term, ...]] = field(default_factory=dict)

    @property
    def open_dims(self) -> Mapping[str, str]:
        """Names of the caches' dimensions that are neither batch nor positions and have no length, each with a cache
        that has it."""
        return {
            d: c.input
            for c in reversed(self.caches)
            for axis, d in enumerate(c.shape)
            if isinstance(d, str) and axis not in (c.batch, c.length)
        }

    def with_lengths(self, lengths: Mapping[str, int]) -> DecoderInterface:
        """Return the interface with these lengths of its open dimensions; other names are ignored."""
        known = {name: length for name, length in lengths.items() if name in self.open_dims}
        caches = tuple(replace(c, shape=tuple(known.get(str(d), d) for d in c.shape)) for c in self.caches)
        return replace(self, caches=caches)

    def mask_length(self, past: int, sequence: int) -> int:
        return total_of(self.mask_terms, past, sequence)

    @property
    def values_per_token(self) -> int:
        """Numbers that the cache holds for one position of one sequence."""
        return sum(math.prod(cache.concrete(1, 1)) for cache in self.caches)


_PAST = (
    (re.compile(r"^past_key_values\.(.+)$"), r"present.\1", r"present_key_values.\1"),
    (re.compile(r"^past_(.+)$"), r"present_\1", r"present_\1"),
    (re.compile(r"^past\.(.+)$"), r"present.\1", r"present.\1"),
    (re.compile(r"^cache_(.+)$"), r"new_cache_\1", r"present_\1"),
)
"""Names of cache inputs, each with the names that its output may have."""


def guess_cache(inputs: Sequence[str], outputs: Sequence[str]) -> dict[str, str]:
    """Return cache input → output by their usual names; {} where there is none."""
    found: dict[str, str] = {}
    for name in inputs:
        for pattern, *replacements in _PAST:
            made = (pattern.sub(replacement, name) for replacement in replacements if pattern.match(name))
            output = next((candidate for candidate in made if candidate in outputs), None)
            if output is not None:
                found[name] = output
                break
    return found


def read_interface(
    inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], context: int, named: Mapping[str, str],
    ties: Mapping[str, str] = MappingProxyType({}),
) -> DecoderInterface:  # fmt: skip
    """Return how a decoder's ONNX file is fed. named: the recipe's cache input → output; {}: by their usual names.
    ties: the recipe's sums by name of a dimension.

    Raises `ModelError` where an input or output has no known meaning.
    """
    by_input, by_output = {s.name: s for s in inputs}, {s.name: s for s in outputs}
    pairs = dict(named) or guess_cache(list(by_input), list(by_output))
    if not pairs:
        raise ModelError(
            f"no cache is found among the inputs {', '.join(by_input)}",
            hint="name it: model.decoder.cache: {INPUT: OUTPUT}",
        )
    for kind, names, known in (("input", pairs, by_input), ("output", pairs.values(), by_output)):
        for name in names:
            if name not in known:
                raise ModelError(f"the model has no {kind} '{name}', which model.decoder.cache names")
    rest = [s for s in inputs if s.name not in pairs]
    ids = _only("token ids", [s for s in rest if s.name == IDS] or [s for s in rest if _is_ids(s)], rest)
    others = {role: s for s in rest if s is not ids for role in [_role(s)]}
    if "" in others:
        raise ModelError(
            f"input '{others[''].name}' is neither token ids, cache, write_indices, attention_mask nor position_ids",
            hint="export the model without it",
        )
    plain = [s for s in outputs if s.name not in pairs.values()]
    logits = _only("logits", [s for s in plain if len(s.shape) == 3 and s.dtype.startswith("float")], plain)
    caches = tuple(_cache(by_input[i], by_output[o], str(ids.shape[0])) for i, o in pairs.items())
    form: Form = "in_place" if "positions" in others else "growing"
    vocabulary = logits.shape[2]
    if not isinstance(vocabulary, int):
        raise ModelError(f"the output '{logits.name}' does not say how long the vocabulary is")
    if form == "in_place" and any(c.batch for c in caches):
        raise ModelError("a cache of fixed capacity needs the batch as its first dimension")
    held = {c.shape[c.length] for c in caches} if form == "in_place" else set()
    if held and held != {context}:
        raise ModelError(
            f"the model's cache holds {', '.join(map(str, sorted(held, key=str)))} positions, not {context}",
            hint=f"model.decoder.context: {next(iter(held))}",
        )
    positions, mask, position_ids = (
        others[role].name if role in others else "" for role in ("positions", "mask", "position_ids")
    )
    face = DecoderInterface(form, context, vocabulary, caches, ids.name, logits.name, positions, mask, position_ids)
    return _tied(face, ties, ids, by_input, by_output) if ties else face


def _tied(
    face: DecoderInterface, ties: Mapping[str, str], ids: TensorSpec, inputs: Mapping[str, TensorSpec],
    outputs: Mapping[str, TensorSpec],
) -> DecoderInterface:  # fmt: skip
    """Return the interface with the lengths and the sums that the recipe says."""
    lengths = {name: int(text) for name, text in ties.items() if name in face.open_dims and text.strip().isdecimal()}
    sums = {name: text for name, text in ties.items() if name not in lengths}
    face = face.with_lengths(lengths)
    return _summed(face, sums, ids, inputs, outputs) if sums else face


def _summed(
    face: DecoderInterface, ties: Mapping[str, str], ids: TensorSpec, inputs: Mapping[str, TensorSpec],
    outputs: Mapping[str, TensorSpec],
) -> DecoderInterface:  # fmt: skip
    """Return the interface with its tied dimensions."""
    if face.form == "in_place":
        raise ModelError(
            "a cache of fixed capacity does not grow, so no dimension of it is a sum", hint="remove 'ties'"
        )
    cache = face.caches[0]
    dims = {str(outputs[c.output].shape[c.length]): (outputs[c.output],) for c in face.caches}
    if face.mask:
        dims[str(inputs[face.mask].shape[-1])] = (inputs[face.mask],)
    read = read_ties(ties, str(ids.shape[1]), str(cache.shape[cache.length]), dims)
    own = str(inputs[face.mask].shape[-1]) if face.mask else ""
    return replace(face, ties=read, mask_terms=read.get(own, WHOLE))


def _only(what: str, found: Sequence[TensorSpec], among: Sequence[TensorSpec]) -> TensorSpec:
    if len(found) != 1:
        names = ", ".join(s.name for s in among) or "none"
        raise ModelError(f"{'no' if not found else 'more than one'} tensor can be its {what} (there are: {names})")
    return found[0]


def _is_ids(spec: TensorSpec) -> bool:
    return spec.dtype in ("int64", "int32") and len(spec.shape) == 2 and not _role(spec)


def _role(spec: TensorSpec) -> str:
    """Return the field of `DecoderInterface` that an input fills, '' for none."""
    if spec.name in (POSITIONS, "cache_position", "past_lengths") and len(spec.shape) == 1:
        return "positions"
    return {"attention_mask": "mask", "position_ids": "position_ids"}.get(spec.name, "")


def _cache(given: TensorSpec, made: TensorSpec, batch: str) -> CacheTensor:
    """Find the axes of batch and positions: the batch has the token ids' name, positions change or are a number."""
    axes = [axis for axis, d in enumerate(given.shape) if str(d) == batch]
    if len(axes) != 1 or len(given.shape) != len(made.shape):
        raise ModelError(f"cache '{given.name}' ({given}) has no one dimension that is the batch '{batch}' of the ids")
    moving = [axis for axis in _free(given, axes[0]) if str(given.shape[axis]) != str(made.shape[axis])]
    if not moving:  # fixed capacity: [batch, heads, CAPACITY, size]
        return CacheTensor(given.name, made.name, given.dtype, given.shape, axes[0], len(given.shape) - 2)
    if len(moving) != 1:
        raise ModelError(f"cache '{given.name}' ({given}) grows along no one dimension: its output is {made}")
    return CacheTensor(given.name, made.name, given.dtype, given.shape, axes[0], moving[0])


def _free(spec: TensorSpec, batch: int) -> Iterator[int]:
    return (axis for axis, d in enumerate(spec.shape) if axis != batch and isinstance(d, str))
