"""Shape inference: ONNX's own, and the ranks that it leaves out."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

_MAX_ROUNDS = 16


def infer_shapes(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with the types and shapes of inner tensors as far as they can be told; unchanged if inference fails.

    ONNX gives up at a Reshape to lengths that it does not know, and at everything behind it. But the number of these
    lengths is known, and so the rank, which the version converter and others need.
    """
    import onnx
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
    found = False
    for node in graph.node:
        if node.op_type != "Reshape" or node.domain or len(node.input) < 2 or node.output[0] in ranks:
            continue
        rank, element = lengths.get(node.input[1], 0), elements.get(node.input[0], 0)
        if rank and element:
            value = graph.value_info.add(name=node.output[0])
            value.type.tensor_type.elem_type = element
            for _ in range(rank):
                value.type.tensor_type.shape.dim.add()
            found = True
    return found
