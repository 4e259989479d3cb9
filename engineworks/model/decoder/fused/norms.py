"""Root mean square norms (Zhang and Sennrich, 2019): x / sqrt(mean(x²) + ε) × weight, as one node each."""

from __future__ import annotations

from engineworks.host.lazy import onnx
from engineworks.model.decoder.fused.graph import CONTRIB, DecoderGraph
from engineworks.model.graphs import attribute


def fuse_norms(graph: DecoderGraph) -> int:
    """Replace Pow, ReduceMean, Add, Sqrt, Reciprocal, Mul and Mul, and the addition of what goes around a block before
    them; return how many norms there were."""
    fused = 0
    for node in list(graph.nodes):
        found = _norm(graph, node)
        if found is not None:
            made, gone = _fused(graph, node.output[0], *found)
            graph.replace([made], [node, *gone])
            fused += 1
    return fused


def _fused(
    graph: DecoderGraph, output: str, x: str, weight: str, epsilon: float
) -> tuple[onnx.NodeProto, list[onnx.NodeProto]]:
    """Return the new node, and the addition that it takes in."""
    addition = graph.made_by(x, "Add")
    if addition is None or x in graph.outputs or not _same_shape(graph, *addition.input):
        return onnx.helper.make_node(
            "SimplifiedLayerNormalization", [x, weight], [output], name=f"{output}_norm", axis=-1, epsilon=epsilon,
            stash_type=1,
        ), []  # fmt: skip
    return onnx.helper.make_node(
        "SkipSimplifiedLayerNormalization", [*addition.input, weight], [output, "", "", x], name=f"{output}_norm",
        domain=CONTRIB, epsilon=epsilon,
    ), [addition]  # fmt: skip


def _same_shape(graph: DecoderGraph, a: str, b: str) -> bool:
    """Whether both are known to be [batch, sequence, size], so that nothing is broadcast."""
    shapes = [graph.shapes.get(name, []) for name in (a, b)]
    return all(len(s) == 3 and 1 not in s and s[2] is not None for s in shapes) and shapes[0][2] == shapes[1][2]


def _norm(graph: DecoderGraph, node: onnx.NodeProto) -> tuple[str, str, float] | None:
    """Return x, weight and ε of a norm whose last node this is."""
    if node.op_type != "Mul":
        return None
    for weight, scaled in (tuple(node.input), tuple(node.input)[::-1]):
        values, product = graph.constant(weight), graph.made_by(scaled, "Mul")
        if values is None or values.ndim != 1 or values.dtype != "float32" or product is None:
            continue
        for x, inverse in (tuple(product.input), tuple(product.input)[::-1]):
            epsilon = _epsilon(graph, x, inverse)
            if epsilon is not None:
                return x, weight, epsilon
    return None


def _epsilon(graph: DecoderGraph, x: str, inverse: str) -> float | None:
    """Return ε if `inverse` is 1 / sqrt(mean(x²) + ε) over the last axis."""
    reciprocal = graph.made_by(inverse, "Reciprocal")
    root = graph.made_by(reciprocal.input[0], "Sqrt") if reciprocal is not None else None
    total = graph.made_by(root.input[0], "Add") if root is not None else None
    if total is None:
        return None
    for mean_name, epsilon_name in (tuple(total.input), tuple(total.input)[::-1]):
        mean, epsilon = graph.made_by(mean_name, "ReduceMean"), graph.constant(epsilon_name)
        if mean is None or epsilon is None or epsilon.size != 1 or not attribute(mean, "keepdims", 1):
            continue
        axes, square = graph.constant(mean.input[1]) if len(mean.input) > 1 else None, graph.makers.get(mean.input[0])
        if axes is not None and axes.tolist() == [-1] and square is not None and _is_square(graph, square, x):
            return float(epsilon.reshape(()))
    return None


def _is_square(graph: DecoderGraph, node: onnx.NodeProto, x: str) -> bool:
    if node.op_type == "Mul":
        return list(node.input) == [x, x]
    power = graph.constant(node.input[1]) if node.op_type == "Pow" else None
    return power is not None and node.input[0] == x and power.size == 1 and float(power.reshape(())) == 2
