"""Walks over a model: graphs, branches and bodies, nodes, stored tensors and names; and the order of nodes."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator, MutableSequence
from graphlib import CycleError, TopologicalSorter
from typing import Any

from engineworks.errors import ModelError
from engineworks.host.lazy import np, onnx


def subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """The graphs that the node itself holds (branches of If, bodies of Loop and Scan), not those within them."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def all_graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """The graph and, depth first, every graph inside of its nodes."""
    yield graph
    for node in graph.node:
        for inner in subgraphs(node):
            yield from all_graphs(inner)


def all_nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Every node of the graph and of the graphs inside of it."""
    for inner in all_graphs(graph):
        yield from inner.node


def model_graphs(model: onnx.ModelProto) -> Iterator[onnx.GraphProto]:
    """The main graph and every graph inside of nodes, those of the model's own functions too."""
    yield from all_graphs(model.graph)
    for function in model.functions:
        for node in function.node:
            for inner in subgraphs(node):
                yield from all_graphs(inner)


def model_nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """Every node of the model: of its graphs, branches, bodies and functions."""
    for graph in model_graphs(model):
        yield from graph.node
    for function in model.functions:
        yield from function.node


def all_tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every tensor that is stored in the model: initializers and attributes, in subgraphs and functions too."""
    yield from model.graph.initializer
    yield from inner_tensors(model)


def inner_tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every stored tensor but the initializers of the main graph."""
    yield from _stored_in_nodes(model.graph.node)
    for function in model.functions:
        yield from _stored_in_nodes(function.node)


def names_read(node: onnx.NodeProto) -> Iterator[str]:
    """Tensors that the node reads: its inputs, and whatever the graphs inside of it read (their own tensors too;
    names must be unique)."""
    yield from (name for name in node.input if name)
    for inner in subgraphs(node):
        yield from (value.name for value in inner.output)
        for inner_node in inner.node:
            yield from names_read(inner_node)


def attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    """Return the value of a node's attribute, `default` where it has none of this name."""
    return next((onnx.helper.get_attribute_value(a) for a in node.attribute if a.name == name), default)


def node_label(node: onnx.NodeProto) -> str:
    """How a message calls the node: by its name, else by what it makes."""
    return f"node '{node.name}'" if node.name else f"the node that makes '{next(iter(node.output), '')}'"


def fresh_name(stem: str, taken: set[str], *, first: int = 1) -> str:
    """`stem`, or where that is taken the first free of `stem_1`, `stem_2`, …, counted from `first`; takes the name."""
    name, number = stem, first
    while name in taken:
        name, number = f"{stem}_{number}", number + 1
    taken.add(name)
    return name


def constant_tensor(node: onnx.NodeProto) -> onnx.TensorProto | None:
    """The value of a Constant node as a tensor named after its output, in its own type: float attributes are float32
    (graphsurgeon makes them float64). None for strings, sparse values and other nodes."""
    if node.op_type != "Constant" or node.domain not in ("", "ai.onnx") or len(node.attribute) != 1:
        return None
    attribute = node.attribute[0]
    tensor = onnx.TensorProto()
    if attribute.ref_attr_name:
        return None
    if attribute.name == "value":
        tensor.CopyFrom(attribute.t)
    elif attribute.name in ("value_float", "value_floats"):
        tensor = onnx.numpy_helper.from_array(np.array(onnx.helper.get_attribute_value(attribute), np.float32))
    elif attribute.name in ("value_int", "value_ints"):
        tensor = onnx.numpy_helper.from_array(np.array(onnx.helper.get_attribute_value(attribute), np.int64))
    else:
        return None
    tensor.name = node.output[0]
    return tensor


def keep_named(values: MutableSequence[Any], wanted: Callable[[str], bool]) -> None:
    """Delete the values of other names from a repeated field of a graph: inputs, initializers, sparse ones."""
    for index in reversed(range(len(values))):
        value = values[index]
        if not wanted(value.name if hasattr(value, "name") else value.values.name):
            del values[index]


def set_nodes(graph: onnx.GraphProto, nodes: Iterable[onnx.NodeProto]) -> None:
    """Replace the graph's nodes; some of the new ones may be the old ones."""
    copies = onnx.GraphProto(node=nodes)
    del graph.node[:]
    graph.node.extend(copies.node)


def sort_nodes(graph: onnx.GraphProto) -> None:
    """Put every node after those whose tensors it reads, else in the order it had, in branches and bodies too.

    Raises `ModelError` for a cycle.
    """
    for node in graph.node:
        for inner in subgraphs(node):
            sort_nodes(inner)
    makers = {name: i for i, node in enumerate(graph.node) for name in node.output if name}
    sorter = TopologicalSorter[int]()
    for index, node in enumerate(graph.node):
        # A branch's own tensor may be called as the node's output; that is no cycle.
        needed = {makers[n] for n in names_read(node) if n in makers and (makers[n] != index or n in node.input)}
        sorter.add(index, *needed)
    try:
        sorter.prepare()
    except CycleError as error:
        stuck = graph.node[min(error.args[1])]
        raise ModelError(f"the graph has a cycle through {node_label(stuck)} ({stuck.op_type})") from None
    ready, order = sorted(sorter.get_ready()), list[int]()
    while ready:
        order.append(heapq.heappop(ready))
        sorter.done(order[-1])
        for reader in sorter.get_ready():
            heapq.heappush(ready, reader)
    if order != sorted(order):
        set_nodes(graph, [graph.node[index] for index in order])


def copy_fields(source: Any, target: Any, *, but: set[str]) -> None:
    """Copy a protobuf message field by field, so that no large one has to be copied to be dropped."""
    for field, value in source.ListFields():
        if field.name in but:
            continue
        if hasattr(value, "extend"):
            getattr(target, field.name).extend(value)
        elif hasattr(value, "CopyFrom"):
            getattr(target, field.name).CopyFrom(value)
        else:
            setattr(target, field.name, value)


def _stored_in_nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.TensorProto]:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
        for graph in subgraphs(node):
            yield from graph.initializer
            yield from _stored_in_nodes(graph.node)
