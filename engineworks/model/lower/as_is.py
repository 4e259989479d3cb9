"""A model that brings its own Q/DQ (quantization-aware training): looked at, never changed.

What TensorRT refuses, or takes for something else in silence, is refused here with the node's name: asymmetric zero
points, uint8 (which TensorRT reads as int8), quantized biases, scales that are no constants, an opset without scales
per channel.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np

from engineworks.errors import ModelError
from engineworks.model.graphs import all_nodes, node_label
from engineworks.model.lower.half_graph import tensor_values
from engineworks.model.opset import opset_of

if TYPE_CHECKING:
    import onnx

MIN_OPSET = 13
"""First opset whose DequantizeLinear has scales per channel."""

_SHOWN = 3
_SYMMETRIC = (
    "train with symmetric int8 (qscheme=torch.per_tensor_symmetric, dtype=qint8), or export ActivationSymmetric"
)
_BIASES = "leave biases in floating point (QuantizeBias=False): they are added to int32 sums anyway"
_ONE_KIND = "quantize with QuantizeLinear and DequantizeLinear around fp32 operators (the QDQ format)"


@dataclass(frozen=True)
class AsIs:
    """Q/DQ nodes of the model, and the types that they store."""

    quantize_nodes: int
    dequantize_nodes: int
    types: tuple[str, ...]

    def to_json(self) -> dict[str, object]:
        return asdict(self)


def check_as_is(model: onnx.ModelProto, where: str) -> AsIs:
    """Raises `ModelError` that names the nodes, if the model's own Q/DQ are not what every backend takes.

    A model without any is passed on too: it may be in fp16 already, or mixed.
    """
    nodes = [n for n in all_nodes(model.graph) if n.op_type in ("QuantizeLinear", "DequantizeLinear")]
    if nodes and opset_of(model) < MIN_OPSET:
        raise ModelError(
            f"{where}: the model is of opset {opset_of(model)}, its Q/DQ need {MIN_OPSET} ({node_label(nodes[0])})",
            hint=f"export it with opset {MIN_OPSET} or later",
        )
    found: dict[tuple[str, str], list[str]] = {}
    for node, what, hint in _complaints(model):
        found.setdefault((what, hint), []).append(node_label(node))
    if found:
        parts = [f"{_several(labels)} {what}" for (what, _), labels in found.items()]
        hints = dict.fromkeys(hint for _, hint in found)
        raise ModelError(f"{where}: {'; '.join(parts)}", hint="; ".join(hints))
    return AsIs(
        sum(n.op_type == "QuantizeLinear" for n in nodes),
        sum(n.op_type == "DequantizeLinear" for n in nodes),
        tuple(sorted({_type_name(model, n) for n in nodes})),
    )


def _several(labels: list[str]) -> str:
    more = len(labels) - _SHOWN
    return ", ".join(labels[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _complaints(model: onnx.ModelProto) -> Iterator[tuple[onnx.NodeProto, str, str]]:
    import onnx

    constants = _constants(model)
    types = {value.name: value.type.tensor_type.elem_type for value in model.graph.input}
    for node in all_nodes(model.graph):
        if node.op_type in _INTEGER_OPERATORS:
            yield node, f"computes on integers by itself ({node.op_type})", _ONE_KIND
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            continue
        stored = constants.get(node.input[0])
        zero = constants.get(node.input[2]) if len(node.input) > 2 and node.input[2] else None
        kind = _stored_type(node, stored, zero, types)
        if node.op_type == "DequantizeLinear" and kind == onnx.TensorProto.INT32:
            yield node, "makes a bias of int32", _BIASES
        elif kind in (onnx.TensorProto.UINT8, onnx.TensorProto.UINT16, onnx.TensorProto.UINT4):
            yield node, f"stores {onnx.TensorProto.DataType.Name(kind).lower()}", _SYMMETRIC
        elif zero is not None and np.any(np.asarray(tensor_values(zero)).astype(np.float32) != 0):
            yield node, "has a zero point that is not 0", _SYMMETRIC
        if node.input[1] not in constants:
            yield node, f"has a scale '{node.input[1]}' that is computed at run time", _ONE_KIND


_INTEGER_OPERATORS = frozenset({
    "ConvInteger", "DynamicQuantizeLinear", "MatMulInteger", "QLinearConv", "QLinearMatMul",
})  # fmt: skip


def _stored_type(
    node: onnx.NodeProto, stored: onnx.TensorProto | None, zero: onnx.TensorProto | None, types: dict[str, int]
) -> int:
    """Element type of the quantized side of the node; 0 where nothing here tells."""
    import onnx

    if zero is not None:
        return int(zero.data_type)
    if node.op_type == "DequantizeLinear":
        return int(stored.data_type) if stored is not None else types.get(node.input[0], 0)
    wanted = next((a.i for a in node.attribute if a.name == "output_dtype"), 0)
    return int(wanted) or int(onnx.TensorProto.UINT8)  # the standard's default


def _type_name(model: onnx.ModelProto, node: onnx.NodeProto) -> str:
    import onnx

    constants = _constants(model)
    zero = constants.get(node.input[2]) if len(node.input) > 2 else None
    kind = _stored_type(node, constants.get(node.input[0]), zero, {})
    return str(onnx.TensorProto.DataType.Name(kind).lower()) if kind else "computed"


def _constants(model: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    found = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        for attribute in node.attribute if node.op_type == "Constant" else ():
            if attribute.name == "value":
                found[node.output[0]] = attribute.t
    return found
