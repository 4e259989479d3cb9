"""Clean-up that changes no value: sorting, dropping what no output needs, constants as initializers, known branches
in place. It expects unique tensor names (`names.name_tensors`)."""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from typing import TYPE_CHECKING

from engineworks.errors import ModelError
from engineworks.model.graphs import all_graphs, all_nodes, names_read, node_label, subgraphs

if TYPE_CHECKING:
    import onnx


def sort_nodes(graph: onnx.GraphProto) -> None:
    """Put every node after those whose tensors it reads, else in the order it had. Raises `ModelError` for a cycle."""
    for node in graph.node:
        for inner in subgraphs(node):
            sort_nodes(inner)
    makers = {name: i for i, node in enumerate(graph.node) for name in node.output if name}
    readers: dict[int, list[int]] = {}
    waiting = []
    for index, node in enumerate(graph.node):
        needed = {makers[name] for name in names_read(node) if name in makers}
        waiting.append(len(needed))
        for maker in needed:
            readers.setdefault(maker, []).append(index)
    ready = [index for index, count in enumerate(waiting) if not count]
    order = []
    while ready:
        order.append(heapq.heappop(ready))
        for reader in readers.get(order[-1], ()):
            waiting[reader] -= 1
            if not waiting[reader]:
                heapq.heappush(ready, reader)
    if len(order) < len(waiting):
        stuck = next(node for node, count in zip(graph.node, waiting, strict=True) if count)
        raise ModelError(f"the graph has a cycle through {node_label(stuck)} ({stuck.op_type})")
    if order != sorted(order):
        set_nodes(graph, [graph.node[index] for index in order])


def drop_unused(graph: onnx.GraphProto) -> None:
    """Drop nodes and initializers that no output depends on, also within branches. Expects sorted nodes."""
    needed = {value.name for value in graph.output}
    kept = []
    for node in reversed(graph.node):
        if not needed.intersection(node.output):
            continue
        for inner in subgraphs(node):
            drop_unused(inner)
        needed.update(names_read(node))
        kept.append(node)
    if len(kept) < len(graph.node):
        set_nodes(graph, kept[::-1])
    for index in reversed(range(len(graph.initializer))):
        if graph.initializer[index].name not in needed:
            del graph.initializer[index]
    for index in reversed(range(len(graph.sparse_initializer))):
        if graph.sparse_initializer[index].values.name not in needed:
            del graph.sparse_initializer[index]


def copy_constant_outputs(graph: onnx.GraphProto) -> None:
    """Give every output that is an initializer an Identity of its own, for some builders want outputs to be made by a
    node. An output that is an input as well stays: an ONNX graph cannot call the two otherwise."""
    import onnx

    outputs = {value.name for value in graph.output}
    for tensor in [t for t in graph.initializer if t.name in outputs]:
        name = tensor.name
        tensor.name = f"{name}/constant"
        for node in all_nodes(graph):
            for index, read in enumerate(node.input):
                if read == name:
                    node.input[index] = tensor.name
        graph.node.append(onnx.helper.make_node("Identity", [tensor.name], [name], name=f"{name}/output"))


def drop_inputs_with_values(graph: onnx.GraphProto) -> None:
    """Before IR version 4 every initializer was listed as an input too, where a caller could override it."""
    weights = {tensor.name for tensor in graph.initializer}
    for index in reversed(range(len(graph.input))):
        if graph.input[index].name in weights:
            del graph.input[index]


def constants_to_initializers(graph: onnx.GraphProto) -> None:
    """Turn Constant nodes into initializers, in their own type: float attributes are float32 (graphsurgeon makes them
    float64). Strings and sparse values stay nodes."""
    for inner in all_graphs(graph):
        kept = []
        for node in inner.node:
            tensor = _constant(node)
            if tensor is None:
                kept.append(node)
            else:
                inner.initializer.add().CopyFrom(tensor)
        if len(kept) < len(inner.node):
            set_nodes(inner, kept)


def hoist_initializers(graph: onnx.GraphProto) -> None:
    """Move the initializers of branches and bodies to the main graph, where they can be shared and kept beside the
    file. graphsurgeon copies into every branch what it reads from outside. A branch keeps what it returns as it is,
    for ONNX Runtime wants a graph's outputs to be its own."""
    names = {tensor.name for tensor in graph.initializer}
    for inner in list(all_graphs(graph))[1:]:
        kept = {value.name for value in (*inner.input, *inner.output)}
        for index in reversed(range(len(inner.initializer))):
            tensor = inner.initializer[index]
            if tensor.name in kept:
                continue
            if tensor.name not in names:
                graph.initializer.add().CopyFrom(tensor)
                names.add(tensor.name)
            del inner.initializer[index]


def inline_known_branches(graph: onnx.GraphProto, known: Mapping[str, onnx.TensorProto] | None = None) -> int:
    """Put the taken branch of every If whose condition is an initializer in its place; how many there were.

    `known` are the initializers of the graphs around this one.
    """
    import onnx

    known = {**(known or {}), **{tensor.name: tensor for tensor in graph.initializer}}
    inner_found = sum(inline_known_branches(inner, known) for node in graph.node for inner in subgraphs(node))
    nodes: list[onnx.NodeProto] = []
    found = 0
    for node in graph.node:
        if node.op_type != "If" or node.domain or node.input[0] not in known:
            nodes.append(node)
            continue
        found += 1
        taken = "then_branch" if onnx.numpy_helper.to_array(known[node.input[0]]).item() else "else_branch"
        branch = next(attribute.g for attribute in node.attribute if attribute.name == taken)
        graph.initializer.extend(branch.initializer)
        nodes.extend(branch.node)
        for value, name in zip(branch.output, node.output, strict=True):
            nodes.append(onnx.helper.make_node("Identity", [value.name], [name], name=f"{node.name}/{name}"))
    if found:
        set_nodes(graph, nodes)
    return found + inner_found


def set_nodes(graph: onnx.GraphProto, nodes: list[onnx.NodeProto]) -> None:
    """Replace the graph's nodes."""
    import onnx

    copies = onnx.GraphProto()
    copies.node.extend(nodes)
    del graph.node[:]
    graph.node.extend(copies.node)


def count_nodes(graph: onnx.GraphProto) -> int:
    """Nodes of the graph and of everything inside of it."""
    return sum(1 for _ in all_nodes(graph))


def _constant(node: onnx.NodeProto) -> onnx.TensorProto | None:
    import numpy as np
    import onnx

    if node.op_type != "Constant" or node.domain not in ("", "ai.onnx") or len(node.attribute) != 1:
        return None
    attribute = node.attribute[0]
    if attribute.ref_attr_name:
        return None
    tensor = onnx.TensorProto()
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
