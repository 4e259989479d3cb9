"""Parts of a graph recognized by their structure: arithmetic on integers, expanded normalizations, layout."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from engineworks.model.lower.half.graph import TypedGraph

LAYOUT = frozenset({
    "Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "GatherElements", "GatherND", "Identity", "Reshape",
    "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze",
})  # fmt: skip
"""Operators that only move values: their output is as exact as their input."""

_ARITHMETIC = LAYOUT.difference({"Gather", "GatherElements", "GatherND"}) | {
    "Abs", "Add", "Cast", "Ceil", "Clip", "ConstantOfShape", "Cos", "CumSum", "Div", "Einsum", "Equal", "Exp",
    "EyeLike", "Floor", "Greater", "Less", "Log", "MatMul", "Max", "Min", "Mod", "Mul", "Neg", "Pow", "Range",
    "Reciprocal", "ReduceMax", "ReduceMin", "ReduceSum", "Round", "Sign", "Sin", "Sqrt", "Sub", "Sum", "Trilu",
    "Where",
}  # fmt: skip
_AFTER_SQUARES = frozenset({
    "Add", "Clip", "Div", "Expand", "Identity", "Max", "Mul", "Pow", "Reciprocal", "Reshape", "Sqrt", "Squeeze",
    "Unsqueeze",
})  # fmt: skip

_FLOATING = frozenset({1, 10, 11, 16})
"""Element types: float32, float16, double, bfloat16."""


def integer_arithmetic(graph: TypedGraph) -> frozenset[int]:
    """Return nodes whose float values come only from integers, vectors and scalars: positions, masks, sizes, their
    sines.

    Embeddings are excluded, because they look their values up in a weight.
    """
    exact: set[int] = set()
    for at, node in enumerate(graph.nodes):
        if node.op_type not in _ARITHMETIC or not graph.float_outputs(at) or _reads_other_floats(graph, at):
            continue
        sources = [name for _, name in graph.float_inputs(at)]
        if all(_is_vector(graph, n) if n in graph.weights else graph.producers.get(n) in exact for n in sources):
            exact.add(at)
    return frozenset(exact)


def _reads_other_floats(graph: TypedGraph, at: int) -> bool:
    """Return whether an input has a floating type other than the graph's; its values do not come from integers."""
    return any(graph.types.get(n) in _FLOATING and not graph.is_float(n) for n in graph.nodes[at].input if n)


def _is_vector(graph: TypedGraph, name: str) -> bool:
    """Return whether at most one dimension is longer than 1."""
    dims = graph.weights[name].dims
    return bool(math.prod(dims) == max(dims, default=1))


def normalizations(graph: TypedGraph) -> frozenset[int]:
    """Return nodes of expanded layer, RMS and L2 norms: the square, its mean or sum, epsilon, root, and the
    division."""
    nodes: set[int] = set()
    for at, node in enumerate(graph.nodes):
        square = graph.producers.get(node.input[0]) if node.input else None
        if node.op_type in ("ReduceMean", "ReduceSum") and square is not None and _is_square(graph, square):
            nodes |= {at, square, *_centering(graph, square)}
            nodes.update(_until_division(graph, at))
        elif node.op_type in ("ReduceL2", "ReduceSumSquare"):
            nodes.update(_until_division(graph, at))
    return frozenset(nodes)


def _is_square(graph: TypedGraph, at: int) -> bool:
    node = graph.nodes[at]
    if node.op_type == "Pow":
        exponent = node.input[1]
        return exponent in graph.weights and bool(np.all(graph.values(exponent) == 2))
    return bool(node.op_type == "Mul" and node.input[0] == node.input[1])


def _centering(graph: TypedGraph, square: int) -> Iterator[int]:
    """Yield x - mean(x) before the square."""
    centered = graph.producers.get(graph.nodes[square].input[0])
    if centered is None or graph.nodes[centered].op_type != "Sub":
        return
    mean = graph.producers.get(graph.nodes[centered].input[1])
    if mean is not None and graph.nodes[mean].op_type == "ReduceMean":
        yield from (centered, mean)


def _until_division(graph: TypedGraph, at: int) -> Iterator[int]:
    """Yield what follows a mean of squares, through the node that divides the activations by its root."""
    waiting, visited = [at], {at}
    while waiting:
        for _, name in graph.float_outputs(waiting.pop()):
            for user, _ in graph.consumers.get(name, ()):
                others = [n for n in graph.nodes[user].input if n and n != name and n not in graph.weights]
                floats = [n for n in others if graph.is_float(n)]
                op = graph.nodes[user].op_type
                if user in visited or op not in _AFTER_SQUARES or (floats and op not in ("Div", "Mul")):
                    continue
                visited.add(user)
                yield user
                if not floats:
                    waiting.append(user)
