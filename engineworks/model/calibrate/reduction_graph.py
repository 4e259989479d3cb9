"""ONNX nodes, appended to a model, that compute a tensor's size, extremes and sample for a calibrator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from engineworks.host.lazy import onnx
from engineworks.model.calibrate.values import LARGE, SAMPLED_EVERY, Same
from engineworks.model.onnx_files import opset_of

LEAST_OPSET = 10
"""First opset in which Slice has its bounds as inputs."""

_ROW_AXES = 2
"""Number of leading axes that form a tensor's rows: channels of images, positions of sequences."""

_PREFIX = "engineworks:"

FROM = f"{_PREFIX}from"
"""Input: where samples begin, i64[1]; beyond every tensor for a batch without samples."""

NOWHERE = np.array([np.iinfo(np.int64).max], np.int64)

DERIVED: Mapping[str, Same] = {
    "Relu": lambda values: np.maximum(values, 0),
    **dict.fromkeys(("Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose"), lambda values: values),
}
"""Operators that keep the order of values, so that their output's extremes and samples follow from their input's."""


@dataclass(frozen=True)
class Reduced:
    """A tensor that the graph reduces: the names of its results. sample: None if none is taken."""

    size: str
    least: str
    most: str
    total: str
    sample: str | None


def derivations(model: onnx.ModelProto, made: Sequence[str]) -> dict[str, tuple[str, Same]]:
    """Return the tensors that follow from others of them: their source and how."""
    named, derived = frozenset(made), dict[str, tuple[str, Same]]()
    for node in model.graph.node:
        same = DERIVED.get(node.op_type) if node.domain in ("", "ai.onnx") else None
        if same and node.output[0] in named and node.input[0] in named:
            derived[node.output[0]] = node.input[0], same
    return derived


def append_reductions(model: onnx.ModelProto, tensors: Mapping[str, int], *, sample: bool) -> dict[str, Reduced]:
    """Append nodes for the size, extremes, sum and sample of each tensor; these become the graph's outputs.

    tensors: their ranks by name, 0 if unknown.
    """
    graph, opset = model.graph, opset_of(model)
    del graph.output[:]
    if sample:
        constants = {"to": NOWHERE, "axis": [0], "flat": [-1], "one": [1], "every": [SAMPLED_EVERY]}
        for name, value in constants.items():
            graph.initializer.append(onnx.numpy_helper.from_array(np.array(value, np.int64), _PREFIX + name))
        graph.initializer.append(onnx.numpy_helper.from_array(np.array(LARGE, np.int64), f"{_PREFIX}large"))
        graph.input.append(onnx.helper.make_tensor_value_info(FROM, onnx.TensorProto.INT64, [1]))
    reduced = {}
    for at, (tensor, rank) in enumerate(tensors.items()):
        names = Reduced(*(f"{_PREFIX}{what}:{at}" for what in ("size", "least", "most", "total", "sample")))
        reduced[tensor] = names if sample else Reduced(names.size, names.least, names.most, names.total, None)
        graph.node.extend(_reductions(tensor, names, rank, opset))
        if names.sample and sample:
            graph.node.extend(_sampling(tensor, names.size, names.sample))
    outputs = (name for names in reduced.values() for name in vars(names).values() if name)
    graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs)
    return reduced


def _reductions(tensor: str, names: Reduced, rank: int, opset: int) -> list[onnx.NodeProto]:
    """Make nodes for the size, the extremes, and the sum, which shows NaN: ONNX Runtime's own extremes skip it.

    A tensor of images or sequences is reduced by rows first, because ONNX Runtime uses several threads for rows and one
    for a whole tensor.
    """
    make = onnx.helper.make_node
    nodes = [make("Size", [tensor], [names.size])]
    rows = f"{names.size}:rows"
    if rank > _ROW_AXES:
        nodes.append(make("Flatten", [tensor], [rows], axis=_ROW_AXES))
    for kind, name in (("ReduceMin", names.least), ("ReduceMax", names.most), ("ReduceSum", names.total)):
        reduced_rows = tensor
        if rank > _ROW_AXES:
            reduced_rows = f"{name}:rows"
            nodes.extend(_of_rows(kind, rows, reduced_rows, opset))
        nodes.append(make(kind, [reduced_rows], [name], keepdims=0))
    return nodes


def _of_rows(kind: str, rows: str, result: str, opset: int) -> list[onnx.NodeProto]:
    """Reduce rows; the axis is an attribute in older opsets and an input since."""
    make = onnx.helper.make_node
    if opset < (13 if kind == "ReduceSum" else 18):
        return [make(kind, [rows], [result], axes=[1], keepdims=0)]
    axis = onnx.numpy_helper.from_array(np.array([1], np.int64))
    return [
        make("Constant", [], [f"{result}:axis"], value=axis),
        make(kind, [rows, f"{result}:axis"], [result], keepdims=0),
    ]


def _sampling(tensor: str, size: str, sample: str) -> list[onnx.NodeProto]:
    """Sample one value in `SAMPLED_EVERY` of a large tensor, all of a small one, none if `FROM` lies beyond the
    tensor."""
    make = onnx.helper.make_node
    large, every, flat = (f"{sample}:{what}" for what in ("large", "every", "flat"))
    to, axis = f"{_PREFIX}to", f"{_PREFIX}axis"
    return [
        make("Greater", [size, f"{_PREFIX}large"], [large]),
        make("Where", [large, f"{_PREFIX}every", f"{_PREFIX}one"], [every]),
        make("Reshape", [tensor, f"{_PREFIX}flat"], [flat]),
        make("Slice", [flat, FROM, to, axis, every], [sample]),
    ]
