"""Which nodes stay fp32, and why: literal tables, and rules that read the graph. Changes no model."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence

from engineworks.host.lazy import onnx
from engineworks.model.lower.half.graph import FLOAT, FloatFormat, HalfFormat, TypedGraph
from engineworks.model.lower.half.patterns import LAYOUT, integer_arithmetic, normalizations
from engineworks.model.lower.half.weights import WeightFacts, scale_error
from engineworks.model.lower.quantizable import matches

EXACT = "computed from integers (positions, masks, sizes), which half precision would round"
_SQUARES = "part of a normalization: squares and their mean overflow or vanish in half precision"
BETWEEN = "lies between nodes that stay fp32"
_RANDOM = "another type would draw other random numbers"
_SPECTRAL = "a spectrum spans more orders of magnitude than half precision"
_SAMPLING = "sampling coordinates need more digits than half precision has"
_INNER_SUM = "its inner sum overflows half precision"
_RUNNING = "a running sum or product loses digits at every step"

KEPT_OPS: Mapping[str, str] = {
    "AffineGrid": _SAMPLING, "GridSample": _SAMPLING, "RoiAlign": _SAMPLING, "MaxRoiPool": _SAMPLING,
    "CumSum": _RUNNING, "CumProd": _RUNNING, "ReduceProd": _RUNNING,
    "DFT": _SPECTRAL, "STFT": _SPECTRAL, "MelWeightMatrix": _SPECTRAL,
    "BlackmanWindow": _SPECTRAL, "HannWindow": _SPECTRAL, "HammingWindow": _SPECTRAL,
    "RandomNormal": _RANDOM, "RandomNormalLike": _RANDOM, "RandomUniform": _RANDOM, "RandomUniformLike": _RANDOM,
    "Bernoulli": _RANDOM, "Multinomial": _RANDOM,
    "Det": "a determinant's products overflow half precision",
    "ReduceLogSum": _INNER_SUM, "ReduceLogSumExp": _INNER_SUM,
    "ReduceL2": _SQUARES, "ReduceSumSquare": _SQUARES,
    "Range": "its limits must be exact, and ONNX has no half-precision Range",
    "TensorScatter": "TensorRT wants its cache to be a network input, without a cast between",
    "NonMaxSuppression": "ONNX defines its boxes and scores in fp32 only",
    "MeanVarianceNormalization": "TensorRT and ONNX Runtime expand it with fp32 constants",
    "Celu": "TensorRT and ONNX Runtime expand it with fp32 constants",
}  # fmt: skip
"""Operators that always stay fp32."""

KEPT_OPS_BFLOAT16: Mapping[str, str] = dict.fromkeys(
    ("ConvTranspose", "GlobalLpPool", "GRU", "HardSwish", "LpNormalization", "LpPool", "Mish", "Shrink"),
    "TensorRT-RTX 1.7 does not build it in bf16",
)
"""Found by building each operator alone (FP32, FP16, BF16) for compute capability 8.9."""

FLOAT_PORTS: Mapping[tuple[str, int], str] = {
    ("Resize", 1): "region of interest",
    ("Resize", 2): "scales: ONNX has them in fp32 only",
    ("Upsample", 1): "scales: ONNX has them in fp32 only",
    ("OneHot", 1): "depth is a count",
}
"""Inputs that stay fp32 although their node is converted."""

ANY_TYPE = frozenset({"Cast", "Shape", "Size", "IsNaN", "IsInf", "NonZero"})
"""Operators that take either type if they have no float32 output: they need no cast before them."""

HEAVY = frozenset({
    "Conv", "ConvTranspose", "MatMul", "Gemm", "Einsum", "LSTM", "GRU", "RNN", "Attention", "DeformConv",
})  # fmt: skip
"""Worth a cast on either side; all other operators follow their neighbours."""

_QUANTIZERS = frozenset({"QuantizeLinear", "DequantizeLinear"})
_PEEPHOLES = 7  # position of this input of LSTM
_SCALE_TOLERANCE = 2.0**-8  # of a quantization scale: the error of bf16, the coarsest type used, for any


def takes_any_type(graph: TypedGraph, at: int) -> bool:
    return graph.nodes[at].op_type in ANY_TYPE and not graph.float_outputs(at)


def kept_in_fp32(
    graph: TypedGraph, half: HalfFormat, facts: WeightFacts, keep: tuple[str, ...], observed: Mapping[str, str]
) -> dict[int, str]:
    """Return the index of every node that stays fp32 → the reason. Nodes without a float32 tensor belong to neither
    group.

    `keep` are patterns of nodes (`quantizable.matches`), `observed` reasons by node name.
    """
    exact, squares = integer_arithmetic(graph), normalizations(graph)
    kept: dict[int, str] = {}
    for at, node in enumerate(graph.nodes):
        if not (graph.float_inputs(at) or graph.float_outputs(at) or at in graph.captured):
            continue
        reason = asked_for(node, keep) or observed.get(node.name) or _unfit(graph, at, half)
        reason = reason or weights_unfit(graph, at, half, facts) or (_SQUARES if at in squares else None)
        if not reason and at in exact and _dynamic(graph, at):
            reason = EXACT
        if reason:
            kept[at] = reason
    return with_neighbours(graph, kept)


def asked_for(node: onnx.NodeProto, keep: Sequence[str]) -> str | None:
    """Return the reason to keep a node that the user named, by name, glob or operator; None for any other."""
    pattern = next((p for p in keep if matches(node, p)), None)
    return None if pattern is None else f"asked for by '{pattern}'"


def _unfit(graph: TypedGraph, at: int, half: HalfFormat) -> str | None:
    """Return why the operator cannot be half, without reading its values."""
    node = graph.nodes[at]
    if at in graph.captured:
        return "holds a subgraph, which stays fp32"
    unknown = [n for n in (*node.input, *node.output) if n and n not in graph.types]
    if unknown:
        return f"the type of '{unknown[0]}' is unknown"
    table = {**KEPT_OPS, **(KEPT_OPS_BFLOAT16 if half.name == "bfloat16" else {})}
    if node.domain in ("", "ai.onnx") and node.op_type in table:
        return table[node.op_type]
    if node.op_type in ("ScatterElements", "ScatterND") and any(a.name == "reduction" for a in node.attribute):
        return "ONNX Runtime has no half-precision scatter that reduces"
    if node.op_type == "LSTM" and len(node.input) > _PEEPHOLES and node.input[_PEEPHOLES]:
        return "TensorRT-RTX 1.7 builds no peepholes in half precision"
    return schema_refuses(graph, at, half)


def schema_refuses(graph: TypedGraph, at: int, half: FloatFormat) -> str | None:
    """Return why ONNX lacks the operator for this type; None if it has it."""
    node = graph.nodes[at]
    if node.domain == "com.microsoft" and node.op_type in _QUANTIZERS:
        return None
    if node.domain not in ("", "ai.onnx"):
        return f"'{node.domain}.{node.op_type}' is not one of ONNX's own operators: which types it takes is unknown"
    version = graph.opset()
    try:
        schema = onnx.defs.get_schema(node.op_type, version, "")
    except onnx.defs.SchemaError:
        return f"{node.op_type} is unknown to opset {version}"
    wanted = "tensor(float)" if half.elem_type == FLOAT else f"tensor({half.name})"
    inputs = [(i, name) for i, name in graph.float_inputs(at) if (node.op_type, i) not in FLOAT_PORTS]
    for formals, used in ((schema.inputs, inputs), (schema.outputs, graph.float_outputs(at))):
        for position, _ in used:
            if wanted not in formals[min(position, len(formals) - 1)].types:
                return f"{node.op_type} of opset {version} has no {half.name}"
    return None


def weights_unfit(graph: TypedGraph, at: int, half: FloatFormat, facts: WeightFacts) -> str | None:
    """Return why the node's weights cannot be half: values out of range, or all of them too small."""
    if graph.nodes[at].op_type in _QUANTIZERS:
        scale = graph.nodes[at].input[1]
        if scale not in graph.weights:
            return f"its scale '{scale}' is computed at run time"
        error = scale_error(graph.values(scale), half)
        return None if error <= _SCALE_TOLERANCE else f"its scale '{scale}' would change by {error:.1%}"
    for position, name in graph.float_inputs(at):
        if name not in graph.weights or (graph.nodes[at].op_type, position) in FLOAT_PORTS:
            continue
        fact = facts[name]
        if fact.max_abs > half.max:
            return f"weight '{name}' reaches {fact.max_abs:.4g}; {half.name} ends at {half.max:.4g}"
        if fact.nonzero and fact.flushed == fact.nonzero:
            return f"weight '{name}' ({fact.max_abs:.2g}) would become 0"
    return None


def _dynamic(graph: TypedGraph, at: int) -> bool:
    return any(name not in graph.weights for _, name in graph.float_inputs(at))


def with_neighbours(graph: TypedGraph, kept: Mapping[int, str]) -> dict[int, str]:
    """Add the light nodes between fp32 nodes, where casts would cost more than they save."""
    wanted = _only_float_uses(graph, kept)
    made_float = {name for at in kept for _, name in graph.float_outputs(at)}
    given_float = set(graph.inputs)
    result = dict(kept)
    for at, node in enumerate(graph.nodes):
        inputs, outputs = graph.float_inputs(at), graph.float_outputs(at)
        sources = [name for _, name in inputs if name not in graph.weights]
        ends_here = not outputs and not takes_any_type(graph, at)  # ArgMax, Less, QuantizeLinear
        if at in result or not sources or not (at in wanted or ends_here):
            continue
        native = made_float | given_float if node.op_type in LAYOUT or ends_here else made_float
        if all(name in native for name in sources):
            result[at] = BETWEEN
            made_float.update(name for _, name in outputs)
    for at in range(len(graph.nodes) - 1, -1, -1):
        if at not in result and not _dynamic(graph, at) and _uses_are_float(graph, at, result):
            result[at] = BETWEEN
    return result


def _only_float_uses(graph: TypedGraph, kept: Mapping[int, str]) -> frozenset[int]:
    """Return light nodes whose results are all needed in fp32 if every light node after them can stay fp32 too."""
    floating = set(kept)
    for at in range(len(graph.nodes) - 1, -1, -1):
        if graph.nodes[at].op_type not in HEAVY and _uses_are_float(graph, at, floating):
            floating.add(at)
    return frozenset(floating)


def _uses_are_float(graph: TypedGraph, at: int, fp32: Container[int]) -> bool:
    """Return whether a node's float32 results are all needed in fp32, where `fp32` are the nodes that compute in it.

    For values made from integers one such use is enough, because it may need the exact number.
    """
    wants = []
    for _, name in graph.float_outputs(at):
        if name in graph.outputs or name in graph.captured_names:
            wants.append(True)
        for user, position in graph.consumers.get(name, ()):
            if not takes_any_type(graph, user):
                wants.append(user in fp32 or (graph.nodes[user].op_type, position) in FLOAT_PORTS)
    exact = graph.nodes[at].op_type in ("Cast", "ConstantOfShape") and not graph.float_inputs(at)
    return bool(wants) and (any(wants) if exact else all(wants))
