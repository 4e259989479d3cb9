"""Sparse constants → dense ones, before anything else sees the model: no tool of the pipeline takes sparse tensors."""

from __future__ import annotations

import math
from typing import Any

from engineworks.errors import ModelError
from engineworks.host.lazy import NDArray, np, onnx
from engineworks.model.graphs import model_graphs, model_nodes

MOST_DENSE = 1 << 28
"""Elements of a sparse constant: as float32 1 GiB."""


def make_dense(model: onnx.ModelProto, where: str) -> None:
    """Make sparse initializers and Constants with a sparse value dense, in branches, bodies and functions too.

    Raises `ModelError` for values outside of the file, and for indices that do not fit the shape.
    """
    for graph in model_graphs(model):
        for sparse in graph.sparse_initializer:
            graph.initializer.append(_dense(sparse, sparse.values.name, where))
        graph.ClearField("sparse_initializer")
    for node in model_nodes(model):
        if node.op_type != "Constant" or not node.attribute or node.attribute[0].name != "sparse_value":
            continue
        if node.attribute[0].type == onnx.AttributeProto.SPARSE_TENSOR:  # not a reference to a function's attribute
            dense = _dense(node.attribute[0].sparse_tensor, node.output[0], where)
            node.attribute[0].CopyFrom(onnx.helper.make_attribute("value", dense))


def _dense(sparse: onnx.SparseTensorProto, name: str, where: str) -> onnx.TensorProto:
    """The tensor with zeros where nothing is stored. Indices are positions in the flat tensor, [n], or coordinates,
    [n, rank]."""
    if any(onnx.external_data_helper.uses_external_data(t) for t in (sparse.values, sparse.indices)):
        raise ModelError(
            f"{where}: the sparse constant '{name}' keeps its values outside of the ONNX file",
            hint="save the model with that constant inside of the file, or dense",
        )
    shape = tuple(sparse.dims)
    if min(shape, default=0) < 0 or math.prod(shape) > MOST_DENSE:
        raise ModelError(f"{where}: the sparse constant '{name}' has shape {list(shape)}", hint="is the file damaged?")
    values: NDArray[Any] = onnx.numpy_helper.to_array(sparse.values).reshape(-1)
    indices: NDArray[Any] = onnx.numpy_helper.to_array(sparse.indices)
    dense = np.zeros(math.prod(shape), values.dtype)
    try:
        flat = np.ravel_multi_index(tuple(indices.T), shape) if indices.ndim == 2 else indices
        if flat.size and not 0 <= flat.min() <= flat.max() < dense.size:
            raise ValueError("an index lies outside of the shape")
        dense[flat] = values
    except (ValueError, IndexError) as error:
        raise ModelError(
            f"{where}: the sparse constant '{name}' of shape {list(shape)} is not valid: {error}",
            hint="export the model again, with dense constants",
        ) from None
    made: onnx.TensorProto = onnx.numpy_helper.from_array(dense.reshape(shape), name)
    return made
