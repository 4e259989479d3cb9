"""What a model consists of, in numbers, and how it uses its operators: what `plan` asks `capabilities`.

A use is an operator and, after a colon, what is particular about it: 'LSTM', 'LSTM:sequence_lens'.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping

from engineworks.host.lazy import onnx
from engineworks.model.fold.report import Inventory
from engineworks.model.graphs import all_nodes, all_tensors
from engineworks.model.onnx_files import dtype_name, graph_inputs, graph_outputs, opset_of
from engineworks.model.tensor_storage import is_external, tensor_bytes, tensor_values

_QUANTIZERS = ("QuantizeLinear", "DequantizeLinear")
_UNSIGNED = ("uint8", "uint16", "uint4", "uint2")
_INPUTS = {
    ("LSTM", 4): "sequence_lens", ("GRU", 4): "sequence_lens", ("RNN", 4): "sequence_lens",
}  # fmt: skip
_ATTRIBUTES = {("Resize", "antialias"): "antialias"}
"""Optional inputs by their place, and attributes that are not 0, that are a use of their own."""


def operator_name(node: onnx.NodeProto) -> str:
    """'Conv', or 'com.microsoft.Gelu'."""
    return str(node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}.{node.op_type}")


def node_uses(model: onnx.ModelProto) -> dict[str, tuple[str, ...]]:
    """Use → names of the nodes, branches and bodies included. Small weights must be loaded."""
    uses: dict[str, list[str]] = {}
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in all_nodes(model.graph):
        operator = operator_name(node)
        for use in ("", *_particular(node, operator, constants)):
            uses.setdefault(f"{operator}:{use}" if use else operator, []).append(node.name)
    return {use: tuple(nodes) for use, nodes in sorted(uses.items())}


def _particular(node: onnx.NodeProto, operator: str, constants: Mapping[str, onnx.TensorProto]) -> Iterator[str]:
    for index, name in enumerate(node.input):
        if name and (operator, index) in _INPUTS:
            yield _INPUTS[operator, index]
    for attribute in node.attribute:
        if attribute.i and (operator, attribute.name) in _ATTRIBUTES:
            yield _ATTRIBUTES[operator, attribute.name]
        if attribute.name == "reduction" and attribute.s not in (b"", b"none"):
            yield "reduction"
    if operator == "MaxPool" and any(node.output[1:]):
        yield "indices"
    if operator in _QUANTIZERS:
        yield from _quantizer(node, constants)


def _quantizer(node: onnx.NodeProto, constants: Mapping[str, onnx.TensorProto]) -> Iterator[str]:
    kind = stored_type(node, constants)
    if kind == "int32":
        yield "int32"
    if kind in _UNSIGNED:
        yield "unsigned"
    if len(node.input) > 2 and node.input[2] and not _is_zero(constants.get(node.input[2])):
        yield "zero_point"


def stored_type(node: onnx.NodeProto, constants: Mapping[str, onnx.TensorProto]) -> str:
    """Type of the quantized side of a QuantizeLinear or DequantizeLinear, such as 'int8'; '' where it is unknown."""
    zero = constants.get(node.input[2]) if len(node.input) > 2 else None
    tensor = zero if zero is not None else constants.get(node.input[0])
    if zero is None and node.op_type == "QuantizeLinear":
        kind = next((a.i for a in node.attribute if a.name == "output_dtype"), 0) or onnx.TensorProto.UINT8
    else:
        kind = tensor.data_type if tensor is not None else 0
    return str(onnx.TensorProto.DataType.Name(kind).lower()) if kind else ""


def _is_zero(tensor: onnx.TensorProto | None) -> bool:
    """Whether all its values are 0; a computed one may be anything, and one in a file of its own is not looked at."""
    if tensor is None:
        return False
    return is_external(tensor) or not tensor_values(tensor).astype("float32").any()


_NOT_PARAMETERS = frozenset({"int64", "int32", "bool", "string"})


def inventory(model: onnx.ModelProto) -> Inventory:
    """Count the model's parts. Weights need not be loaded: sizes come from shapes and dtypes."""
    operators = Counter(map(operator_name, all_nodes(model.graph)))
    sizes: Counter[str] = Counter()
    parameters = 0
    for tensor in all_tensors(model):
        dtype = dtype_name(tensor.data_type)
        sizes[dtype] += tensor_bytes(tensor)
        if dtype not in _NOT_PARAMETERS:
            parameters += math.prod(tensor.dims)
    return Inventory(
        nodes=operators.total(),
        operators=dict(sorted(operators.items(), key=lambda item: (-item[1], item[0]))),
        uses=node_uses(model),
        parameters=parameters,
        weight_bytes=sum(sizes.values()),
        bytes_by_dtype=dict(sorted(sizes.items())),
        opset=opset_of(model),
        ir_version=model.ir_version,
        inputs=graph_inputs(model),
        outputs=graph_outputs(model),
    )
