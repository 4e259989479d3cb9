"""Facts of an ONNX file: inputs, outputs, tables that its integer inputs look up, Q/DQ, half precision."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import get_args

from engineworks.commands.init.dimensions import NAMELESS
from engineworks.commands.init.draft import ModelFacts, Range, RawTensor
from engineworks.errors import ModelError
from engineworks.host.lazy import onnx
from engineworks.model.graphs import all_nodes
from engineworks.model.onnx_files import check_tensors, dtype_name, graph_inputs, known_dim, load_model
from engineworks.recipe.recipe import Input
from engineworks.tensors import Dim

_SHAPED_BY_VALUES = frozenset({
    "NonZero", "NonMaxSuppression", "Unique", "Compress", "Loop", "Scan", "If", "SequenceAt", "ConcatFromSequence",
    "StringSplit",
})  # fmt: skip
"""Operators whose outputs' lengths may follow from values, so that a few runs do not predict others."""

_TAKE_SHAPES = frozenset({"Reshape", "Expand", "Tile", "Range", "Slice", "Pad", "ConstantOfShape", "Resize", "TopK"})

_SAME_VALUES = frozenset({"Cast", "Reshape", "Unsqueeze", "Squeeze", "Identity", "Flatten", "Transpose", "Expand"})
"""Operators whose output holds the values of their first input."""


DTYPES: tuple[str, ...] = get_args(Input.model_fields["dtype"].annotation)


def read_onnx(path: Path) -> ModelFacts:
    """Return facts of the model; weights are not read. Raises `ModelError` for a file that is no ONNX model."""
    model = load_model(path, weights=False)
    check_tensors(model, path)
    for value in model.graph.input:
        if (dtype := dtype_name(value.type.tensor_type.elem_type)) not in DTYPES:
            raise ModelError(f"{path}: input '{value.name}' is {dtype}; a recipe can declare {', '.join(DTYPES)}")
    real = {spec.name for spec in graph_inputs(model)}
    inputs = tuple(_raw(value) for value in model.graph.input if value.name in real)
    operators = {node.op_type for node in all_nodes(model.graph)}
    halves = {"float16", "bfloat16"}
    weights = {dtype_name(t.data_type) for t in model.graph.initializer if len(t.dims) > 1}
    return ModelFacts(
        inputs=inputs,
        outputs=_outputs(model),
        ranges=_table_ranges(model, {i.name for i in inputs if i.dtype in ("int64", "int32")}),
        quantized=bool(operators & {"QuantizeLinear", "DequantizeLinear"}),
        half=bool(halves & ({i.dtype for i in inputs} | weights)),
        by_values=bool(operators & _SHAPED_BY_VALUES) or _shaped_by_inputs(model),
    )


def _outputs(model: onnx.ModelProto) -> tuple[RawTensor, ...]:
    """Return outputs as the model declares them, with lengths of ONNX's shape inference where it gives none."""
    declared = tuple(_raw(value) for value in model.graph.output)
    bare = onnx.ModelProto()
    try:
        bare.CopyFrom(model)
        for value in bare.graph.output:
            value.type.tensor_type.ClearField("shape")
        made = onnx.shape_inference.infer_shapes(bare, data_prop=True)
    except Exception:  # noqa: BLE001 - too large, or operators that it does not know: what is declared stands
        return declared
    inferred = {value.name: _raw(value).dims for value in made.graph.output}
    return tuple(replace(output, dims=_filled(output.dims, inferred.get(output.name, ()))) for output in declared)


def _filled(dims: tuple[Dim | None, ...], inferred: tuple[Dim | None, ...]) -> tuple[Dim | None, ...]:
    if not dims:
        return inferred
    lengths = inferred if len(inferred) == len(dims) else dims
    return tuple(new if isinstance(new, int) and not isinstance(old, int) else old for old, new in zip(dims, lengths))


def _shaped_by_inputs(model: onnx.ModelProto) -> bool:
    """Return whether a shape, a number of repeats, or the bounds of a range or slice come from an input's values."""
    values = {value.name for value in model.graph.input} - {t.name for t in model.graph.initializer}
    for node in all_nodes(model.graph):  # in topological order
        first = set(node.input[:1]) if node.op_type != "Range" else set()
        if node.op_type in _TAKE_SHAPES and values & (set(node.input) - first):
            return True
        if node.op_type in (*_SAME_VALUES, "Concat", "Gather", "Slice") and values & set(node.input[:1]):
            values.update(node.output)
    return False


def _raw(value: onnx.ValueInfoProto) -> RawTensor:
    tensor = value.type.tensor_type
    dims = [known_dim(dim) for dim in tensor.shape.dim]
    shown = tuple(None if d == 0 or (isinstance(d, str) and d in NAMELESS) else d for d in dims)
    return RawTensor(value.name, dtype_name(tensor.elem_type), shown)


def _table_ranges(model: onnx.ModelProto, names: set[str]) -> dict[str, Range]:
    """Return [0, rows - 1] of the smallest table that an integer input looks up (Gather of an initializer, axis 0)."""
    rows = {t.name: t.dims[0] for t in model.graph.initializer if len(t.dims) == 2}
    origin = {name: name for name in names}
    ranges: dict[str, Range] = {}
    for node in model.graph.node:  # in topological order
        if node.op_type in _SAME_VALUES and node.input[0] in origin:
            origin[node.output[0]] = origin[node.input[0]]
        if node.op_type == "Gather" and node.input[0] in rows and node.input[1] in origin:
            axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
            name = origin[node.input[1]]
            largest = float(rows[node.input[0]] - 1)
            if axis == 0:
                ranges[name] = (0.0, min(largest, ranges.get(name, (0.0, largest))[1]))
    return ranges
