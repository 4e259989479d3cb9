"""Guesses by name, dtype and role: value ranges of inputs, and lengths of dimensions worth a try. Pure.

The recipe marks every guess: these are usual values of such inputs, not knowledge.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from engineworks.commands.init.draft import Range
from engineworks.tensors import TensorSpec


@dataclass(frozen=True)
class Candidates:
    """Lengths of one dimension to try: opt in this order, largest from the top down, least from the bottom up."""

    least: tuple[int, ...]
    opt: tuple[int, ...]
    largest: tuple[int, ...]


_ROLES: Sequence[tuple[str, Candidates]] = (
    (r"(^|_)batch|^n$", Candidates((1,), (4, 1), (32, 16, 8, 4))),
    (r"height|width|^h$|^w$", Candidates((32, 64), (224, 256, 512, 320, 299, 640, 64, 32, 28), (512, 256))),
    (r"past|cache|mem", Candidates((0, 1), (16, 8, 4, 1, 0), (240, 112, 48, 16))),
    (r"frames|time|audio|samples", Candidates((8, 16), (64, 128, 3000, 16), (256, 128))),
    (r"channels", Candidates((1, 3), (3, 1, 4), (3, 1, 4))),
    (r"seq|token|length|len|sentence", Candidates((1, 8), (64, 128, 32, 16, 8, 4, 1), (512, 256, 128, 64))),
)
_OTHER = Candidates((1,), (8, 16, 4, 2, 1, 64), (64, 32, 16, 8))


def candidates(dim: str) -> Candidates:
    """Return usual lengths of such a dimension."""
    return next((usual for pattern, usual in _ROLES if re.search(pattern, dim.lower())), _OTHER)


def decoding_candidates(dim: str) -> Candidates:
    """Return the same for a model with a cache: mostly one new token at a time, at most a prompt."""
    usual = candidates(dim)
    return Candidates((1,), (1, 8, 4), (16, 8, 4)) if re.search(r"seq|token|len", dim.lower()) else usual


def value_ranges(specs: Sequence[TensorSpec], tables: Mapping[str, Range]) -> dict[str, Range]:
    """Return [minimum, maximum] of every input except bools. Masks are all ones, as random ones could mask a row."""
    return {spec.name: _range(spec, tables) for spec in specs if spec.dtype != "bool"}


def _range(spec: TensorSpec, tables: Mapping[str, Range]) -> Range:
    name = spec.name.lower()
    if "mask" in name:
        return (1.0, 1.0) if not spec.dtype.startswith("float") or len(spec.shape) < 3 else (0.0, 0.0)
    if spec.name in tables:
        return tables[spec.name]
    if spec.dtype == "uint8":
        return (0.0, 255.0)
    if spec.dtype == "int8":
        return (-128.0, 127.0)
    if spec.dtype.startswith("int"):
        counts = re.search(r"len|num|count|size", name)
        return (0.0, 1.0) if "type" in name or "segment" in name else (1.0, 1.0) if counts else (0.0, 99.0)
    return (-1.0, 1.0)
