"""A model with one more rounding: the same graph with noise of one rounding on its values.

The noise multiplies every floating input and every result of a product or a normalization. How far its outputs move is
how far those of two correct engines may differ. Kernels add up in other orders, and later quantization or comparisons
may tip.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from engineworks.host.lazy import onnx
from engineworks.model.graphs import set_nodes
from engineworks.model.lower.half.graph import infer_types, split_model
from engineworks.model.onnx_files import load_model, opset_of

FLOAT, FLOAT16, DOUBLE, BFLOAT16 = 1, 10, 11, 16

ROUNDING = {FLOAT: 2.0**-20, DOUBLE: 2.0**-20, FLOAT16: 2.0**-11, BFLOAT16: 2.0**-8}
"""By ONNX element type: half a unit in the last place. For float32 it is sixteen, because its sums are long and every
kernel adds them up in another order (Higham 2002, Accuracy and Stability of Numerical Algorithms, 4.2: the error of a
sum of n grows with √n)."""

NO_RANDOM_OPSET = 22
"""From here on RandomUniformLike has a version that ONNX Runtime 1.31 does not run; noise follows from the values."""

_KINDS = (
    "Conv", "MatMul", "Gemm", "Einsum", "LSTM", "GRU", "RNN", "Attention", "MoE", "Normalization", "Softmax",
    "ReduceMean",
)  # fmt: skip

_QUANTIZED = ("QuantizeLinear", "QLinear")
"""How the names of ONNX Runtime's own operators begin whose result is an integer, though an input is a float."""


def graph_with_rounding(path: Path) -> tuple[bytes, int]:
    """Return the model at `path` with noise as one message, and the number of changed values.

    Its external weights stay in place. Branches and bodies of loops stay unchanged.
    """
    model = load_model(path, weights=False)
    changed = add_rounding(model)
    return model.SerializeToString(), changed


def add_rounding(model: onnx.ModelProto) -> int:
    """Put the noise into the model; return the number of changed values."""
    types, opset = _types(model), opset_of(model)
    constants = {t.name for t in model.graph.initializer}
    nodes: list[onnx.NodeProto] = []
    moved: dict[str, str] = {}
    for value in model.graph.input:
        if value.name not in constants and types.get(value.name) in ROUNDING:
            moved[value.name] = f"{value.name}/rounded"
            nodes += _noise(value.name, moved[value.name], types[value.name], len(moved), opset)
    for node in model.graph.node:
        node.input[:] = [moved.get(name, name) for name in node.input]
        nodes.append(node)
        result = node.output[0] if node.output else ""
        if any(kind in node.op_type for kind in _KINDS) and types.get(result) in ROUNDING:
            moved[result + "/noise"] = result  # counted only: the result keeps its name
            node.output[0] = f"{result}/exact"
            nodes += _noise(node.output[0], result, types[result], len(moved), opset)
    set_nodes(model.graph, nodes)
    return len(moved)


def _types(model: onnx.ModelProto) -> dict[str, int]:
    """Return ONNX element types by tensor name.

    ONNX infers none behind an operator that only ONNX Runtime knows: there, a node's first result has the type of its
    first floating input.
    """
    types = infer_types(*split_model(model))
    for node in model.graph.node:
        if node.output and node.output[0] not in types and not node.op_type.startswith(_QUANTIZED):
            floating = [types[name] for name in node.input if types.get(name) in ROUNDING]
            types |= {node.output[0]: floating[0]} if floating else {}
    return types


def _noise(name: str, result: str, elem_type: int, seed: int, opset: int) -> list[onnx.NodeProto]:
    """Make nodes for result = name · u, u within one rounding of 1, computed in float32 or better."""
    wide = DOUBLE if elem_type == DOUBLE else FLOAT
    half = elem_type != wide
    step = ROUNDING[elem_type]
    source, product = (f"{result}/wide", f"{result}/product") if half else (name, result)
    if opset < NO_RANDOM_OPSET:
        drawn: dict[str, Any] = {"low": 1 - step, "high": 1 + step, "dtype": wide, "seed": float(seed)}
        noise = [onnx.helper.make_node("RandomUniformLike", [source], [f"{result}/u"], **drawn)]
    else:
        noise = _noise_of_values(source, f"{result}/u", wide, step)
    nodes = [*noise, onnx.helper.make_node("Mul", [source, f"{result}/u"], [product])]
    if not half:
        return nodes
    first = onnx.helper.make_node("Cast", [name], [source], to=wide)
    return [first, *nodes, onnx.helper.make_node("Cast", [product], [result], to=elem_type)]


def _noise_of_values(source: str, result: str, wide: int, step: float) -> list[onnx.NodeProto]:
    """Make nodes for result = 1 + step · √(2/3) · sin(k · source): the variance of the uniform noise, and no relation
    between neighbouring values. Clipped, so that infinity stays infinity."""

    def constant(value: float, name: str) -> onnx.NodeProto:
        tensor = onnx.helper.make_tensor(name, wide, [], [value])
        return onnx.helper.make_node("Constant", [], [f"{result}/{name}"], value=tensor)

    constants = {"low": -1e4, "high": 1e4, "k": 9973.0, "step": step * (2 / 3) ** 0.5, "one": 1.0}
    chain = [
        ("Clip", [source, f"{result}/low", f"{result}/high"], "clipped"),
        ("Mul", [f"{result}/clipped", f"{result}/k"], "angle"),
        ("Sin", [f"{result}/angle"], "sine"),
        ("Mul", [f"{result}/sine", f"{result}/step"], "part"),
    ]
    return [
        *(constant(value, name) for name, value in constants.items()),
        *(onnx.helper.make_node(kind, given, [f"{result}/{made}"]) for kind, given, made in chain),
        onnx.helper.make_node("Add", [f"{result}/part", f"{result}/one"], [result]),
    ]
