"""Shape inference: ONNX's own, and the ranks that it leaves out; and shapes that are known, as constants."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from engineworks.host.lazy import np, onnx
from engineworks.model.graphs import all_graphs, all_nodes, set_nodes, subgraphs
from engineworks.model.onnx_files import known_dim
from engineworks.tensors import Dim

_MAX_ROUNDS = 16

Lengths = Sequence[Dim | None]


def infer_shapes(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with the types and shapes of inner tensors as far as they can be inferred; unchanged if inference
    fails.

    ONNX gives up at a Reshape to lengths that it does not know, and at everything behind it. But the number of these
    lengths is known, and so the rank, which the version converter and others need.
    """
    from google.protobuf.message import EncodeError

    for _ in range(_MAX_ROUNDS):
        try:
            model = onnx.shape_inference.infer_shapes(model, data_prop=True)
        except (onnx.shape_inference.InferenceError, EncodeError, RuntimeError):
            return model
        if not _add_ranks(model):
            break
    return model


def _add_ranks(model: onnx.ModelProto) -> bool:
    """Note the rank of every Reshape in the main graph that inference did not get to; whether there was any."""
    graph = model.graph
    types = {v.name: v.type.tensor_type for v in (*graph.input, *graph.value_info, *graph.output)}
    ranks = {name: len(t.shape.dim) for name, t in types.items() if t.HasField("shape")}
    lengths = {t.name: t.dims[0] for t in graph.initializer if len(t.dims) == 1}
    lengths |= {n: t.shape.dim[0].dim_value for n, t in types.items() if ranks.get(n) == 1}
    elements = {name: t.elem_type for name, t in types.items()} | {t.name: t.data_type for t in graph.initializer}
    added = False
    for node in graph.node:
        if node.op_type != "Reshape" or node.domain or len(node.input) < 2 or node.output[0] in ranks:
            continue
        rank, element = lengths.get(node.input[1], 0), elements.get(node.input[0], 0)
        if rank and element:
            value = graph.value_info.add(name=node.output[0])
            value.type.tensor_type.elem_type = element
            for _ in range(rank):
                value.type.tensor_type.shape.dim.add()
            added = True
    return added


def fold_known_shapes(graph: onnx.GraphProto, known: Mapping[str, Lengths] | None = None) -> int:
    """Replace each Shape and Size whose lengths are all known by its value, in branches too; how many there were.
    `known` are the shapes of the graphs around this one."""
    types = {v.name: v.type.tensor_type for v in (*graph.input, *graph.value_info)}
    own = {n: [known_dim(d) for d in t.shape.dim] for n, t in types.items() if t.HasField("shape")}
    known = {**(known or {}), **own, **{tensor.name: list(tensor.dims) for tensor in graph.initializer}}
    folded = sum(fold_known_shapes(inner, known) for node in graph.node for inner in subgraphs(node))
    kept = []
    for node in graph.node:
        value = _known_shape(node, known)
        if value is None:
            kept.append(node)
        else:
            graph.initializer.append(value)
    if len(kept) < len(graph.node):
        folded += len(graph.node) - len(kept)
        set_nodes(graph, kept)
    return folded


def spell_out_limits(graph: onnx.GraphProto) -> None:
    """Write a Shape with start or end (opset 15) whose lengths are picked from by Gather or Slice as Shape and Slice.

    graphsurgeon overlooks start and end, and would pick from the whole shape.
    """
    picked = {node.input[0] for node in all_nodes(graph) if node.op_type in ("Gather", "Slice")}
    for inner in all_graphs(graph):
        nodes: list[onnx.NodeProto] = []
        for node in inner.node:
            limits = {attribute.name: attribute.i for attribute in node.attribute}
            if node.op_type != "Shape" or node.domain or not limits or node.output[0] not in picked:
                nodes.append(node)
                continue
            full_shape, out = f"{node.output[0]}/whole", node.output[0]
            bounds = {"start": limits.get("start", 0), "end": limits.get("end", np.iinfo(np.int64).max), "axis": 0}
            for name, bound in bounds.items():
                inner.initializer.append(onnx.numpy_helper.from_array(np.array([bound], np.int64), f"{out}/{name}"))
            nodes.append(onnx.helper.make_node("Shape", node.input, [full_shape], name=node.name))
            inputs = [full_shape, *(f"{out}/{name}" for name in bounds)]
            nodes.append(onnx.helper.make_node("Slice", inputs, [out], name=f"{node.name}/limits"))
        if len(nodes) > len(inner.node):
            set_nodes(inner, nodes)


def _known_shape(node: onnx.NodeProto, known: Mapping[str, Lengths]) -> onnx.TensorProto | None:
    if node.op_type not in ("Shape", "Size") or node.domain or node.input[0] not in known:
        return None
    limits = {attribute.name: attribute.i for attribute in node.attribute}
    lengths = known[node.input[0]][limits.get("start", 0) : limits.get("end")]
    fixed = [length for length in lengths if isinstance(length, int)]
    if len(fixed) < len(lengths):
        return None
    value = fixed if node.op_type == "Shape" else math.prod(fixed)
    tensor: onnx.TensorProto = onnx.numpy_helper.from_array(np.array(value, np.int64), node.output[0])
    return tensor
