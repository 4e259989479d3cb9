"""What an ONNX file says of itself: inputs, outputs, tables that its integer inputs look up, Q/DQ, half precision."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from engineworks.init.dimensions import NAMELESS
from engineworks.init.draft import ModelFacts, Range, RawTensor
from engineworks.model.graphs import all_nodes
from engineworks.model.onnx_files import check_tensors, dtype_name, graph_inputs, known_dim, load_model

if TYPE_CHECKING:
    import onnx

_SAME_VALUES = frozenset({"Cast", "Reshape", "Unsqueeze", "Squeeze", "Identity", "Flatten", "Transpose", "Expand"})
"""Operators whose output holds the values of their first input."""


def read_onnx(path: Path) -> ModelFacts:
    """Facts of the model; weights are not read. Raises `ModelError` for what is no ONNX model."""
    model = load_model(path, weights=False)
    check_tensors(model, path)
    real = {spec.name for spec in graph_inputs(model)}
    inputs = tuple(_raw(value) for value in model.graph.input if value.name in real)
    operators = {node.op_type for node in all_nodes(model.graph)}
    halves = {"float16", "bfloat16"}
    weights = {dtype_name(t.data_type) for t in model.graph.initializer if len(t.dims) > 1}
    return ModelFacts(
        inputs=inputs,
        outputs=tuple(_raw(value) for value in model.graph.output),
        ranges=_table_ranges(model, {i.name for i in inputs if i.dtype in ("int64", "int32")}),
        quantized=bool(operators & {"QuantizeLinear", "DequantizeLinear"}),
        half=bool(halves & ({i.dtype for i in inputs} | weights)),
    )


def _raw(value: onnx.ValueInfoProto) -> RawTensor:
    tensor = value.type.tensor_type
    dims = [known_dim(dim) for dim in tensor.shape.dim]
    shown = tuple(None if d == 0 or (isinstance(d, str) and d in NAMELESS) else d for d in dims)
    return RawTensor(value.name, dtype_name(tensor.elem_type), shown)


def _table_ranges(model: onnx.ModelProto, names: set[str]) -> dict[str, Range]:
    """[0, rows - 1] of the smallest table that an integer input looks up (Gather of an initializer along axis 0)."""
    rows = {t.name: t.dims[0] for t in model.graph.initializer if len(t.dims) == 2}
    origin = {name: name for name in names}
    found: dict[str, Range] = {}
    for node in model.graph.node:  # in topological order
        if node.op_type in _SAME_VALUES and node.input[0] in origin:
            origin[node.output[0]] = origin[node.input[0]]
        if node.op_type == "Gather" and node.input[0] in rows and node.input[1] in origin:
            axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
            name = origin[node.input[1]]
            largest = float(rows[node.input[0]] - 1)
            if axis == 0:
                found[name] = (0.0, min(largest, found.get(name, (0.0, largest))[1]))
    return found
