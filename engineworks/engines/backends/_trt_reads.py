"""Whether the vendor's network reads what the ONNX graph reads: its parser silently drops some inputs of operators.

A layer made for a node carries the node's name in its metadata. Intermediate layers (casts, broadcasts) carry none: the
search walks backwards through them, from the node's own layers and outputs.

Not checked: constant inputs, inputs that follow from shapes alone, inputs of operators that read only a shape. Some
nodes have no layer of their own: the parser may pass a tensor through, and renames the layers of If and Loop. For
those, any layer that reads the input suffices.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from engineworks.host.lazy import onnx
from engineworks.model.graphs import names_read, node_label, subgraphs

_SHAPE_READERS = frozenset({"Shape", "Size", "EyeLike", "RandomNormalLike", "RandomUniformLike"})
"""Operators that read the shape of their input, not its values."""


def ignored_inputs(graph: onnx.GraphProto, network: Any, names: Mapping[str, str]) -> list[str]:
    """Return one phrase for each input of a node that none of its layers reads. names: the network's names of the
    model's inputs."""
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    makers = {name: layer for layer in layers for name in _outputs(layer)}
    read = {name for layer in layers for name in _inputs(layer)} | {
        network.get_output(i).name for i in range(network.num_outputs)
    }
    own: dict[str, list[Any]] = {}
    for layer in layers:
        for node_name in _nodes_of(layer):
            own.setdefault(node_name, []).append(layer)
    there = makers.keys() | {network.get_input(i).name for i in range(network.num_inputs)}
    ignored = []
    for node, index, given in _value_reads(graph):
        name = names.get(given, given)
        if name not in there:
            continue
        starts = own.get(node.name, []) if node.name and not any(subgraphs(node)) else []
        if name not in read or (starts and name not in _reached(starts, makers, node.name)):
            ignored.append(f"{_input_name(node, index)}'{given}' of {node.op_type} ({node_label(node)})")
    return ignored


def _value_reads(
    graph: onnx.GraphProto, outer: frozenset[str] = frozenset()
) -> Iterator[tuple[onnx.NodeProto, int, str]]:
    """Yield (node, index, name) of every input whose values the node reads and that depends on the model's inputs, also
    in branches and bodies. outer: such names of the enclosing graphs."""
    carried = {*outer, *(value.name for value in graph.input)} - {tensor.name for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type in _SHAPE_READERS:
            continue
        yield from ((node, i, name) for i, name in enumerate(node.input) if name in carried)
        for inner in subgraphs(node):
            yield from _value_reads(inner, frozenset(carried))
        if any(name in carried for name in names_read(node)):
            carried.update(name for name in node.output if name)


def _reached(starts: list[Any], makers: dict[str, Any], node_name: str) -> set[str]:
    """Return names of the tensors that these layers read, directly or through layers without another node."""
    reached: set[str] = set()
    pending = list(starts)
    while pending:
        layer = pending.pop()
        for name in _inputs(layer):
            if name in reached:
                continue
            reached.add(name)
            maker = makers.get(name)
            if maker is not None and _nodes_of(maker) in ([], [node_name]):
                pending.append(maker)
    return reached


def _nodes_of(layer: Any) -> list[str]:
    """Return names of the ONNX nodes that the layer was made for: '[ONNX Layer: conv]'."""
    parts = getattr(layer, "metadata", "").split("[ONNX Layer: ")[1:]
    return [part.rpartition("]")[0] for part in parts]


def _inputs(layer: Any) -> Iterator[str]:
    tensors = (layer.get_input(i) for i in range(layer.num_inputs))
    return (tensor.name for tensor in tensors if tensor is not None)


def _outputs(layer: Any) -> Iterator[str]:
    tensors = (layer.get_output(i) for i in range(layer.num_outputs))
    return (tensor.name for tensor in tensors if tensor is not None)


def _input_name(node: onnx.NodeProto, index: int) -> str:
    """Return the operator's name of the input, and a space; '' where the standard does not know it."""
    try:
        inputs = onnx.defs.get_schema(node.op_type, domain=node.domain).inputs
    except onnx.defs.SchemaError:
        return ""
    return f"{inputs[index].name} " if index < len(inputs) else ""
