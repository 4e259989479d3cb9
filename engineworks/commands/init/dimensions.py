"""Names for the dimensions of inputs: the model's own if meaningful, else the usual role of an axis. Pure.

Exporters write 's6', 'unk__12', '?' or nothing. Equal symbols stay equal. An axis without a symbol gets the name of its
role (batch, sequence, height, …), and equal roles count as equal lengths. A trial run then confirms this guess.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations

from engineworks.commands.init.draft import RawTensor
from engineworks.tensors import Dim, TensorSpec

NAMELESS = frozenset({"", "?", "-1", "None", "unk", "unknown", "dynamic"})
"""Symbols that every unknown dimension gets alike: two of them do not imply equal lengths."""

_UGLY = re.compile(
    r"^([a-z]{0,2}\d+|unk_+\d+|dim_?\d*|None.*|.*DynamicDimension.*|.*_dim_\d+|.*_dynamic_axes_\d+|Dynamic.*|.*_o\d+__d\d+)$"
)
_IDENTIFIER = re.compile(r"^[A-Za-z_][A-Za-z0-9_]*$")
_CACHES = re.compile(r"past|cache|key_values|(^|[_.])(kv|mem)([_.]|\d|$)", re.IGNORECASE)
_LONGEST_NAME = 40


@dataclass(frozen=True)
class NamedDims:
    """inputs: with the recipe's names. symbols: the model's symbol → the recipe's name. sums: a dimension that is the
    sum of others, such as a mask over past and present tokens."""

    inputs: tuple[TensorSpec, ...]
    symbols: Mapping[str, str] = field(default_factory=dict)
    sums: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def dims(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(d for spec in self.inputs for d in spec.dynamic_dims))


def name_dims(inputs: Sequence[RawTensor], *, tie: bool = True) -> NamedDims:
    """Name every dynamic dimension of the inputs.

    tie: caches of all layers share their lengths, whatever symbols the exporter made up for each, and the batch of the
    other inputs.
    """
    symbols: dict[str, str] = {}
    taken: set[str] = set()
    ties: dict[tuple[str, int], tuple[str, str]] = {}
    batch = "batch"
    for raw in sorted(inputs, key=lambda r: is_cache(r.name)):  # inputs other than caches name batch and sequence
        for axis, dim in enumerate(raw.dims):
            if not isinstance(dim, str) or dim in NAMELESS or _is_sum(dim):
                continue
            key, pattern = (_family(raw.name), axis), re.sub(r"\d+", "#", dim)
            if dim not in symbols:
                name, known = ties.get(key, ("", ""))
                if tie and is_cache(raw.name) and not _friendly(dim) and role(raw, axis) == "batch" and batch in taken:
                    symbols[dim] = batch
                elif tie and name and (not _friendly(dim) or pattern == known):
                    symbols[dim] = name
                else:
                    symbols[dim] = _free(_friendly(dim) or role(raw, axis), taken, raw.name)
            if is_cache(raw.name):
                ties.setdefault(key, (symbols[dim], pattern))
            elif axis == 0:
                batch = symbols[dim] if batch not in taken else batch
    sums = {}
    for raw in inputs:
        for dim in raw.dims:
            if isinstance(dim, str) and _is_sum(dim) and dim not in symbols:
                parts = tuple(part.strip() for part in dim.split("+"))
                all_known = all(part in symbols for part in parts)
                symbols[dim] = _free(
                    "_and_".join(symbols.get(p, "") for p in parts) if all_known else "total", taken, "all"
                )
                if all_known:
                    sums[symbols[dim]] = tuple(symbols[p] for p in parts)
    named = []
    for raw in inputs:
        shape = [_named(raw, axis, dim, symbols, batch) for axis, dim in enumerate(raw.dims)]
        named.append(TensorSpec(raw.name, raw.dtype, tuple(shape)))
    return NamedDims(tuple(named), symbols, sums)


def name_outputs(
    outputs: Sequence[RawTensor],
    symbols: Mapping[str, str],
    observed: Sequence[tuple[Mapping[str, int], Mapping[str, Sequence[int]]]],
    *,
    by_values: bool = False,
) -> dict[str, tuple[Dim, ...]]:
    """Return shapes of the outputs in the recipe's names.

    observed: of each trial run the lengths of the inputs' dimensions and the outputs' shapes; without one the model's
    own claim stays. Lengths that are no input's and were equal in all runs, such as those of the caches of all layers,
    share a name. by_values: lengths may follow from values.
    """
    named: dict[str, tuple[Dim, ...]] = {}
    shared: dict[tuple[int, ...], str] = {}
    for raw in outputs:
        shapes = [(lengths, made[raw.name]) for lengths, made in observed if raw.name in made]
        if not shapes:
            named[raw.name] = tuple(_claimed(raw, axis, dim, symbols) for axis, dim in enumerate(raw.dims))
            continue
        rank = len(shapes[0][1])
        dims = []
        for axis in range(rank):
            runs = [(n, shape[axis]) for n, shape in shapes if len(shape) == rank]
            dim = _observed(raw, axis, runs, symbols, by_values)
            if dim == _own_name(raw, axis) and len({length for _, length in runs}) > 1:
                dim = shared.setdefault(tuple(length for _, length in runs), _sum_of(runs) or dim)
            dims.append(dim)
        named[raw.name] = tuple(dims)
    return named


def _own_name(raw: RawTensor, axis: int) -> str:
    return f"{_identifier(raw.name)}_{axis}"


def _sum_of(runs: Sequence[tuple[Mapping[str, int], int]]) -> str:
    """Return e.g. 'past_and_sequence' if the length is the sum of two inputs' dimensions in every run, else ''."""
    pairs = combinations(runs[0][0], 2)
    return next((f"{a}_and_{b}" for a, b in pairs if all(n[a] + n[b] == length for n, length in runs)), "")


def is_cache(name: str) -> bool:
    """Return whether an input is what an earlier run left, e.g. keys and values of a decoder."""
    return bool(_CACHES.search(name))


def role(raw: RawTensor, axis: int) -> str:
    """Return the usual role of this axis of an input with this rank and dtype."""
    rank, floating = len(raw.dims), raw.dtype.startswith(("float", "bfloat")) or raw.dtype == "uint8"
    if is_cache(raw.name) and rank >= 3:
        return _cache_role(raw, axis)
    if axis == 0:
        return "batch"
    if rank >= 4 and floating:
        last = raw.dims[-1]
        spatial = range(rank - 3, rank - 1) if isinstance(last, int) and last <= 4 else range(rank - 2, rank)
        if axis in spatial:
            return ("height", "width")[axis - spatial.start]
        return "frames" if rank == 5 else "channels"
    if rank in (2, 3) and axis == 1:
        return "sequence"
    return "length" if rank == 3 else f"{_identifier(raw.name)}_{axis}"


def _cache_role(raw: RawTensor, axis: int) -> str:
    """Return the axis's role in [batch, heads, past, head_size], [layers, batch, heads, past, head_size] or [batch,
    past, size].

    If only one length besides the batch is dynamic, that is the past.
    """
    rank = len(raw.dims)
    batch = 1 if rank == 5 else 0
    if axis == batch:
        return "batch"
    others = [at for at, dim in enumerate(raw.dims) if not isinstance(dim, int) and at != batch]
    if others == [axis] or axis == rank - 2:
        return "past"
    return {rank - 1: "head_size", rank - 3: "heads"}.get(axis, "layers")


def _family(name: str) -> str:
    """Return the common name of the caches of all layers: 'past.3.key' and 'past.12.value' are one family."""
    parts = re.split(r"[^A-Za-z]+", name)
    return ".".join(part for part in parts if part.lower() not in ("", "k", "v", "key", "keys", "value", "values"))


def _named(raw: RawTensor, axis: int, dim: Dim | None, symbols: Mapping[str, str], batch: str) -> Dim:
    if isinstance(dim, int):
        return dim
    if dim is not None and dim in symbols:
        return symbols[dim]
    usual = role(raw, axis)
    return batch if usual == "batch" and is_cache(raw.name) else usual


def _friendly(symbol: str) -> str:
    """Return the model's own name if it is readable and fits into a recipe."""
    identifier = re.sub(r"[^A-Za-z0-9_]+", "_", symbol).strip("_")
    fits = _IDENTIFIER.match(identifier) and len(identifier) <= _LONGEST_NAME
    return "" if not fits or _UGLY.match(symbol) or _UGLY.match(identifier) else identifier


def _is_sum(symbol: str) -> bool:
    return "+" in symbol


def _free(name: str, taken: set[str], prefix: str) -> str:
    """Return `name`, prefixed with the input's name if another dimension has that name."""
    chosen, number = name, 1
    while chosen in taken:
        chosen = f"{_identifier(prefix)}_{name}" + (f"_{number}" if number > 1 else "")
        number += 1
    taken.add(chosen)
    return chosen


def _identifier(name: str) -> str:
    identifier = re.sub(r"[^A-Za-z0-9_]+", "_", name).strip("_")[:_LONGEST_NAME]
    return identifier if _IDENTIFIER.match(identifier) else f"input_{identifier}".rstrip("_")


def _claimed(raw: RawTensor, axis: int, dim: Dim | None, symbols: Mapping[str, str]) -> Dim:
    if isinstance(dim, int) and dim > 0:
        return dim
    if isinstance(dim, str) and dim in symbols:
        return symbols[dim]
    return _own_name(raw, axis)


def _observed(
    raw: RawTensor,
    axis: int,
    runs: Sequence[tuple[Mapping[str, int], int]],
    symbols: Mapping[str, str],
    by_values: bool,
) -> Dim:
    """Return the dimension of an output's axis.

    In this order: the length that the model claims or infers, the dimension that has this axis's length in every run,
    the length that never changed though everything it could depend on did, else its own name.
    """
    lengths = {length for _, length in runs}
    claim = raw.dims[axis] if axis < len(raw.dims) else None
    if isinstance(claim, int) and lengths == {claim}:
        return claim
    names = [n for n in runs[0][0] if all(bound[n] == length for bound, length in runs)]
    varied = {n for n in runs[0][0] if len({bound[n] for bound, _ in runs}) > 1}
    claimed = symbols.get(claim, "") if isinstance(claim, str) else ""
    if claimed in names:
        return claimed
    if matches := [n for n in names if n in varied]:
        return matches[0]
    settled = varied == runs[0][0].keys() and len(runs) > 1 and not by_values
    return lengths.pop() if settled and len(lengths) == 1 and 0 not in lengths else _own_name(raw, axis)
