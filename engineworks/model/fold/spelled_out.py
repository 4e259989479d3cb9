"""Operators that only ONNX Runtime knows but names as if they were ONNX's, written in ONNX's own.

SimplifiedLayerNormalization (onnxruntime, docs/ContribOperators.md has its like with a skip) is what exporters of
language models write for a root mean square norm: x / sqrt(mean(x²) + ε) × weight.
"""

from __future__ import annotations

from typing import Any

from engineworks.host.lazy import np, onnx
from engineworks.model.graphs import all_graphs, attribute, set_nodes
from engineworks.model.onnx_files import opset_of

NORM = "SimplifiedLayerNormalization"


def spell_out_norms(model: onnx.ModelProto) -> int:
    """Replace every norm over the last axis whose second output nothing asks for; return how many there were."""
    axes_are_input, done = opset_of(model) >= 18, 0
    for graph in all_graphs(model.graph):
        types = {tensor.name: tensor.data_type for tensor in graph.initializer}
        nodes: list[onnx.NodeProto] = []
        for node in graph.node:
            spelled = _is_norm(node) and node.input[1] in types
            nodes += _spelled_out(graph, node, types[node.input[1]], axes_are_input) if spelled else [node]
            done += spelled
        set_nodes(graph, nodes)
    return done


def _is_norm(node: onnx.NodeProto) -> bool:
    return node.op_type == NORM and not node.domain and attribute(node, "axis", -1) == -1 and not any(node.output[1:])


def _spelled_out(
    graph: onnx.GraphProto, node: onnx.NodeProto, of_weight: int, axes_are_input: bool
) -> list[onnx.NodeProto]:
    """Return the nodes that compute it: in float32, as its `stash_type` asks, where the tensor is narrower."""
    (x, weight), output = node.input[:2], node.output[0]
    nodes: list[onnx.NodeProto] = []

    def add(operator: str, *inputs: str, **attributes: Any) -> str:
        made = f"{output}_norm_{len(nodes)}"
        nodes.append(onnx.helper.make_node(operator, inputs, [made], name=made, **attributes))
        return made

    def constant(name: str, values: object) -> str:
        made = f"{output}_norm_{name}"
        graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(values), made))
        return made

    wide = add("Cast", x, to=onnx.TensorProto.FLOAT) if of_weight != onnx.TensorProto.FLOAT else x
    square = add("Pow", wide, constant("two", np.float32(2)))
    mean = (
        add("ReduceMean", square, constant("axes", np.array([-1])), keepdims=1)
        if axes_are_input
        else add("ReduceMean", square, axes=[-1], keepdims=1)
    )
    total = add("Add", mean, constant("epsilon", np.float32(attribute(node, "epsilon", 1e-5))))
    scaled = add("Mul", wide, add("Reciprocal", add("Sqrt", total)))
    own = add("Cast", scaled, to=of_weight) if wide != x else scaled
    nodes.append(onnx.helper.make_node("Mul", [own, weight], [output], name=node.name))
    return nodes
