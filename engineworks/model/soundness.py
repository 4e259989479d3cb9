"""What an ONNX file claims of its tensors, checked before anything computes with it: a file may come from anywhere.
Sparse constants become dense, because no tool of the pipeline takes sparse tensors."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

from engineworks.errors import ModelError
from engineworks.host.lazy import NDArray, np, onnx
from engineworks.host.regular_files import resolved
from engineworks.model.graphs import all_nodes, all_tensors, model_graphs, model_nodes, subgraphs
from engineworks.model.tensor_storage import is_external, tensor_bytes

MOST_ELEMENTS = 1 << 40
"""Elements of one tensor: as int8 a terabyte."""

MOST_DIMS = 64
"""Dimensions of one tensor; NumPy has 64."""

MOST_NODES = 1_000_000
"""Nodes of a model whose functions are written out at each call."""

_EXPORT_AGAIN = "export the model again, or copy the whole file"


def check_sound(model: onnx.ModelProto, path: Path) -> None:
    """Check names, functions, data types, dimensions and the amount of stored values. Raises `ModelError` for the first
    defect."""
    _check_names(model, path)
    _check_functions(model, path)
    for tensor in _tensors(model):
        what = f"{path}: tensor '{shown(tensor.name)}'"
        _check_dtype(tensor.data_type, what)
        _check_dims(tensor.dims, what)
        _check_amount(tensor, what)
    for graph in model_graphs(model):
        for value in (*graph.input, *graph.output, *graph.value_info):
            declared = value.type.tensor_type
            what = f"{path}: '{shown(value.name)}'"
            if declared.elem_type:
                _check_dtype(declared.elem_type, what)
            _check_dims([max(d.dim_value, 1) for d in declared.shape.dim], what)


def external_number(text: str, what: str) -> int:
    """Return an offset or length of external data. Raises `ModelError` for what is no number of bytes."""
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise ModelError(f"{what} '{shown(text)}' is no number of bytes", hint=_EXPORT_AGAIN)
    return int(text)


def external_file(root: Path, name: str, what: str) -> Path:
    """Return the file of external data, links followed. Raises `ModelError` if it has no possible name, or leaves the
    folder `root`."""
    try:
        file = resolved(root / name)
    except OSError as error:
        reason = f"{what}: external data '{shown(name)}' cannot be read: {error.strerror}"
        raise ModelError(reason, hint=_EXPORT_AGAIN) from None
    if not file.is_relative_to(root):
        outside = f"{what}: external data '{shown(name)}' lies outside the model's folder"
        raise ModelError(outside, hint="move it beside it")
    return file


def _check_names(model: onnx.ModelProto, path: Path) -> None:
    """Raises `ModelError` for a name that is not text: protobuf gives bytes for what is not UTF-8."""
    names: list[object] = [tensor.name for tensor in _tensors(model)]
    for graph in model_graphs(model):
        names += [value.name for value in (*graph.input, *graph.output, *graph.value_info)]
        names += [dim.dim_param for v in (*graph.input, *graph.output) for dim in v.type.tensor_type.shape.dim]
    for node in model_nodes(model):
        names += [node.name, node.op_type, node.domain, *node.input, *node.output, *(a.name for a in node.attribute)]
    if any(not isinstance(name, str) for name in names):
        raise ModelError(f"{path}: a name in it is not UTF-8 text", hint=_EXPORT_AGAIN)


def _check_functions(model: onnx.ModelProto, path: Path) -> None:
    """Raises `ModelError` where functions call each other in a circle, or double themselves so often that writing them
    out would fill the memory: ONNX's checker and ONNX Runtime inline them."""
    if not model.functions:
        return
    bodies = {(f.domain, f.name): [*f.node, *_inner_nodes(f.node)] for f in model.functions}
    calls = {key: {(n.domain, n.op_type) for n in nodes} & bodies.keys() for key, nodes in bodies.items()}
    try:
        order = tuple(TopologicalSorter(calls).static_order())
    except CycleError as error:
        name = shown(".".join(error.args[1][0]))
        raise ModelError(f"{path}: function '{name}' calls itself", hint=_EXPORT_AGAIN) from None
    sizes: dict[tuple[str, str], int] = {}
    for key in order:
        sizes[key] = sum(sizes.get((n.domain, n.op_type), 1) for n in bodies[key])
    total = sum(sizes.get((n.domain, n.op_type), 1) for n in all_nodes(model.graph))
    if total > MOST_NODES:
        many = f"{total:,}" if total < 10**18 else "more than 10^18"
        raise ModelError(f"{path}: its functions expand to {many} nodes, at most {MOST_NODES:,}", hint=_EXPORT_AGAIN)


def _inner_nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    for node in nodes:
        for graph in subgraphs(node):
            yield from all_nodes(graph)


def shown(name: str) -> str:
    """Return a name as messages show it: short, and printable."""
    return name[:60].encode("unicode_escape", "backslashreplace").decode() + ("…" if len(name) > 60 else "")


def _tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    yield from all_tensors(model)
    for graph in model_graphs(model):
        for sparse in graph.sparse_initializer:
            yield from (sparse.values, sparse.indices)
    for node in model_nodes(model):
        for attribute in node.attribute:
            if attribute.HasField("sparse_tensor"):
                yield from (attribute.sparse_tensor.values, attribute.sparse_tensor.indices)


def _check_dtype(number: int, what: str) -> None:
    if number == 0 or number not in onnx.TensorProto.DataType.values():
        raise ModelError(
            f"{what} has data type {number}, which ONNX {onnx.__version__} does not know", hint=_EXPORT_AGAIN
        )


def _check_dims(dims: Iterable[int], what: str) -> None:
    lengths = list(dims)
    if min(lengths, default=0) < 0:
        raise ModelError(f"{what} has a dimension of {min(lengths)}", hint=_EXPORT_AGAIN)
    if len(lengths) > MOST_DIMS or math.prod(lengths) > MOST_ELEMENTS or max(lengths, default=0) > MOST_ELEMENTS:
        raise ModelError(f"{what} has dimensions {shown(str(lengths))}, too large for any engine", hint=_EXPORT_AGAIN)


def _check_amount(tensor: onnx.TensorProto, what: str) -> None:
    if is_external(tensor):
        return
    elements = math.prod(tensor.dims)
    if tensor.HasField("raw_data") and tensor.data_type != onnx.TensorProto.STRING:
        check_raw(tensor, len(tensor.raw_data), what)
        return
    values = (tensor.float_data, tensor.int32_data, tensor.int64_data, tensor.double_data, tensor.uint64_data)
    held = max(len(tensor.string_data), *map(len, values))
    if not elements / 8 <= held <= 2 * elements:  # packed 4-bit values; a complex number is two
        raise ModelError(f"{what} needs {elements:,} values, and {held:,} are stored", hint=_EXPORT_AGAIN)


def check_raw(tensor: onnx.TensorProto, stored: int, what: str) -> None:
    """Check the number of bytes of a tensor's raw data. Raises `ModelError`."""
    needed = tensor_bytes(tensor)
    if stored != needed:
        raise ModelError(f"{what} needs {needed:,} bytes, and {stored:,} are stored", hint=_EXPORT_AGAIN)


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
