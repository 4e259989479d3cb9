"""The report of folding a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from engineworks.tensors import TensorSpec
from engineworks.typed_json import Count, Document, Report, Size


@dataclass(frozen=True)
class Inventory(Document):
    """What a model consists of, in numbers.

    nodes: their number. operators: how often each operator occurs, as 'Conv' or 'com.microsoft.Gelu'. Both include
    branches and bodies. uses: names of nodes, of every operator and of every use of one that a target may not have
    (`node_uses`). parameters: elements of all stored tensors but those of int64, int32, bool and string, which hold
    shapes, indices and switches. bytes_by_dtype: bytes of all stored tensors; weight_bytes is their sum.
    """

    nodes: Count
    operators: Mapping[str, Count]
    uses: Mapping[str, tuple[str, ...]]
    parameters: Count
    weight_bytes: Count
    bytes_by_dtype: Mapping[str, Count]
    opset: int
    ir_version: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True)
class Fallback(Document):
    """A way to fold that failed, and why."""

    strategy: str
    why: str


@dataclass(frozen=True)
class FoldReport(Report):
    """What was done, and how well it is proven.

    strategy: the way that made the written model (`folding.STRATEGIES`). fallbacks: the ways before it that failed,
    each with why. nodes_before, nodes_after: branches and bodies included. max_abs: largest absolute difference of
    every output from the original's, over `samples` feeds. notes: changes to dimensions, one sentence each.
    """

    FILE = "fold.json"

    strategy: str
    fallbacks: tuple[Fallback, ...]
    nodes_before: Count
    nodes_after: Count
    opset_from: int
    opset_to: int
    max_abs: Mapping[str, Size]
    samples: Count
    notes: tuple[str, ...]
    inventory: Inventory
