"""Rotary embeddings (Su et al., 2021) in halves: x × cos + (−x₂, x₁) × sin, with tables of all positions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from engineworks.host.lazy import onnx
from engineworks.model.decoder.fused.graph import DecoderGraph
from engineworks.model.graphs import attribute


@dataclass(frozen=True)
class Rotation:
    """x: the tensor before it, [batch, heads, sequence, size]. cos, sin: names of the tensors of the new positions."""

    x: str
    cos: str
    sin: str


def rotation_of(graph: DecoderGraph, name: str, size: int) -> Rotation | None:
    """Return the rotation that makes the tensor, None where something else does. size: of a head."""
    total = graph.made_by(name, "Add")
    if total is None:
        return None
    for plain, turned in (tuple(total.input), tuple(total.input)[::-1]):
        one, other = graph.made_by(plain, "Mul"), graph.made_by(turned, "Mul")
        if one is None or other is None:
            continue
        for x, cos in (tuple(one.input), tuple(one.input)[::-1]):
            for halves, sin in (tuple(other.input), tuple(other.input)[::-1]):
                if _is_turned(graph, halves, x, size):
                    return Rotation(x, cos, sin)
    return None


def _is_turned(graph: DecoderGraph, name: str, x: str, size: int) -> bool:
    """Whether the tensor is (−x₂, x₁), of the two halves of x."""
    concat = graph.made_by(name, "Concat")
    if concat is None or len(concat.input) != 2 or attribute(concat, "axis", 0) not in (-1, 3):
        return False
    negative, first = graph.made_by(concat.input[0], "Neg"), graph.made_by(concat.input[1], "Slice")
    second = graph.made_by(negative.input[0], "Slice") if negative is not None else None
    if first is None or second is None:
        return False
    parts = [_part(graph, node, x, size) for node in (first, second)]
    return parts == [list(range(size // 2)), list(range(size // 2, size))]


def _part(graph: DecoderGraph, node: onnx.NodeProto, x: str, size: int) -> list[int]:
    """Return which of x's last axis a Slice takes, [] where it is no such Slice."""
    values = [graph.constant(name) for name in node.input[1:]]
    if node.input[0] != x or len(values) < 3 or any(v is None or v.size != 1 for v in values):
        return []
    start, end, axis, *step = (int(v.reshape(())) for v in values if v is not None)
    return list(range(size))[start : end : step[0] if step else 1] if axis in (-1, 3) else []


def tables(graph: DecoderGraph, rotation: Rotation, size: int) -> tuple[str, str] | None:
    """Return names of cosines and sines of all positions, f32 [context, size / 2]; None where the tensors follow from
    something other than positions, or the halves of a head turn differently."""
    made = []
    for kind, name in (("cos", rotation.cos), ("sin", rotation.sin)):
        key = f"{name}_{kind}_table"
        if key not in graph.weights:
            values = graph.at_positions(name, [0], graph.interface.context)
            if values is None or values.size != graph.interface.context * size or values.dtype != np.float32:
                return None
            whole = values.reshape(-1, size)
            if not np.array_equal(whole[:, : size // 2], whole[:, size // 2 :]):
                return None
            graph.add_constant(whole[:, : size // 2], key)
        made.append(key)
    return made[0], made[1]
