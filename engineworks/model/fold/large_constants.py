"""Folding of large weights, one node at a time, from disk to disk.

The folding libraries compute all constants in one message, so they fail above 2 GiB and need several times that in
memory. Transposed or scaled weights of a large model are computed here before; what is left is small.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from engineworks.host.lazy import Array, onnx, ort
from engineworks.model.fold.tidy import drop_unused
from engineworks.model.graphs import subgraphs
from engineworks.model.ort import exact_options, ort_errors
from engineworks.model.tensor_storage import detach, is_external, tensor_bytes, tensor_values

NEVER_FOLDED = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"})
"""Their constants are the quantization itself."""

_WORTHWHILE_BYTES = 64 << 20
"""Of weights that would be folded; below, the libraries do it all at once, in about eleven times their bytes."""
_LARGE_BYTES = 1 << 20


def fold_large_constants(model: onnx.ModelProto, spill: Path, limit_bytes: int) -> int:
    """Compute the nodes of the main graph that depend on nothing but constants, large weights among them; how many
    there were. Their values go to the file `spill`; one that would be larger than `limit_bytes` stays a node.

    Expects sorted nodes and unique names; does nothing for models with few such weights.
    """
    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    wanted = _wanted_nodes(graph, constants)
    if not wanted:
        return 0
    folded = 0
    with spill.open("wb") as file:
        for index in wanted:
            node = graph.node[index]
            if not all(name in constants for name in node.input if name):
                continue
            values = _computed(node, constants, model)
            if values is None or any(value.nbytes > limit_bytes for value in values.values()):
                continue
            for name, value in values.items():
                tensor = graph.initializer.add(name=name, dims=value.shape)
                tensor.data_type = onnx.helper.np_dtype_to_tensor_dtype(value.dtype)
                start = file.tell()
                file.write(np.ascontiguousarray(value).data)
                file.flush()
                detach(tensor, spill, start)
                constants[name] = tensor
            folded += 1
            del node.input[:]
            del node.output[:]
    drop_unused(graph)
    return folded


def _wanted_nodes(graph: onnx.GraphProto, constants: Mapping[str, onnx.TensorProto]) -> list[int]:
    """Positions of the foldable nodes that a large weight goes through, and of those that these depend on."""
    known = set(constants)
    large = {n for n, t in constants.items() if is_external(t) and tensor_bytes(t) >= _LARGE_BYTES}
    makers: dict[str, int] = {}
    read: set[str] = set()
    wanted: set[int] = set()
    for index, node in enumerate(graph.node):
        names = {name for name in node.input if name}
        if not names <= known or node.op_type in NEVER_FOLDED or any(subgraphs(node)):
            continue
        known.update(node.output)
        makers.update(dict.fromkeys(node.output, index))
        if names & large:
            large.update(node.output)
            read |= names & constants.keys()
            wanted.add(index)
    if sum(tensor_bytes(constants[name]) for name in read) < _WORTHWHILE_BYTES:
        return []
    for index in range(len(graph.node) - 1, -1, -1):
        if index in wanted:
            wanted.update(makers[name] for name in graph.node[index].input if name in makers)
    return sorted(wanted)


def _computed(
    node: onnx.NodeProto, constants: Mapping[str, onnx.TensorProto], model: onnx.ModelProto
) -> dict[str, Array] | None:
    """The node's outputs, computed by ONNX Runtime; None where it, or NumPy, does not know the operator or dtype."""
    names = list(dict.fromkeys(name for name in node.input if name))
    if any(onnx.helper.tensor_dtype_to_np_dtype(constants[name].data_type).kind not in "fiub" for name in names):
        return None
    feeds = {name: tensor_values(constants[name]) for name in names}
    outputs = [name for name in node.output if name]
    graph = onnx.helper.make_graph(
        [node],
        "constant",
        [onnx.helper.make_tensor_value_info(n, constants[n].data_type, constants[n].dims) for n in names],
        [onnx.helper.make_empty_tensor_value_info(name) for name in outputs],
    )
    alone = onnx.helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
    options = exact_options()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = ort.InferenceSession(alone.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return dict(zip(outputs, session.run(outputs, feeds), strict=True))
    except ort_errors():
        return None
