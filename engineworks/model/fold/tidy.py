"""Clean-up that changes no value: names that later steps can rely on (every node has one, and no two nodes and no two
tensors share one), dropping what no output needs, constants as initializers, known branches in place. The latter three
expect unique tensor names (`name_tensors`)."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Iterator, Mapping, MutableSequence

from engineworks.host.lazy import onnx
from engineworks.model.graphs import (
    all_graphs,
    all_nodes,
    constant_tensor,
    fresh_name,
    keep_named,
    names_read,
    set_nodes,
    subgraphs,
)


def has_duplicate_node_names(graph: onnx.GraphProto) -> bool:
    """ONNX allows it; ONNX Runtime does not load such a graph."""
    for inner in all_graphs(graph):
        names = [node.name for node in inner.node if node.name]
        if len(names) != len(set(names)):
            return True
    return False


def name_nodes(graph: onnx.GraphProto) -> None:
    """Give each node without a name, or with another's, the name '<operator>_<position>'; the others keep theirs."""
    taken = {node.name for node in all_nodes(graph) if node.name}
    visited: set[str] = set()
    for position, node in enumerate(all_nodes(graph)):
        if not node.name or node.name in visited:
            node.name = fresh_name(f"{node.op_type}_{position}", taken)
        visited.add(node.name)


def name_tensors(graph: onnx.GraphProto) -> None:
    """Rename tensors inside of branches and bodies that share their name with another graph's tensor. ONNX allows
    that for graphs next to each other; tools that flatten graphs or look tensors up by name do not."""
    taken = {name for inner in all_graphs(graph) for name in _defined(inner)}
    _rename(graph, ChainMap(), set(), taken)


def _rename(graph: onnx.GraphProto, visible: ChainMap[str, str], visited: set[str], taken: set[str]) -> None:
    own: dict[str, str] = {}
    for name in _defined(graph):
        own[name] = name if name not in visited else fresh_name(name, taken)
        taken.add(own[name])
        visited.add(own[name])
    scope = visible.new_child(own)
    for value in (*graph.input, *graph.initializer, *graph.value_info, *graph.output):
        value.name = scope.get(value.name, value.name)
    for sparse in graph.sparse_initializer:
        sparse.values.name = scope.get(sparse.values.name, sparse.values.name)
    for node in graph.node:
        _replace(node.input, scope)
        _replace(node.output, scope)
        for inner in subgraphs(node):
            _rename(inner, scope, visited, taken)


def _replace(names: MutableSequence[str], scope: Mapping[str, str]) -> None:
    for index, name in enumerate(names):
        if scope.get(name, name) != name:
            names[index] = scope[name]


def _defined(graph: onnx.GraphProto) -> Iterator[str]:
    """Tensors that come into being in this graph, each once."""
    names = [value.name for value in (*graph.input, *graph.initializer)]
    names += [sparse.values.name for sparse in graph.sparse_initializer]
    names += [name for node in graph.node for name in node.output]
    yield from dict.fromkeys(name for name in names if name)


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
    keep_named(graph.initializer, needed.__contains__)
    keep_named(graph.sparse_initializer, needed.__contains__)


def copy_constant_outputs(graph: onnx.GraphProto) -> None:
    """Give every output that is an initializer an Identity of its own, for some builders want outputs to be made by a
    node. An output that is an input as well stays: an ONNX graph cannot call the two otherwise."""
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
    keep_named(graph.input, lambda name: name not in weights)


def constants_to_initializers(graph: onnx.GraphProto) -> None:
    """Turn Constant nodes into initializers, in their own type. Strings and sparse values stay nodes."""
    for inner in all_graphs(graph):
        kept = []
        for node in inner.node:
            tensor = constant_tensor(node)
            if tensor is None:
                kept.append(node)
            else:
                inner.initializer.add().CopyFrom(tensor)
        if len(kept) < len(inner.node):
            set_nodes(inner, kept)


def hoist_initializers(graph: onnx.GraphProto) -> None:
    """Move the initializers of branches and bodies to the main graph, where they can be shared and kept next to the
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
    known = {**(known or {}), **{tensor.name: tensor for tensor in graph.initializer}}
    inner_inlined = sum(inline_known_branches(inner, known) for node in graph.node for inner in subgraphs(node))
    nodes: list[onnx.NodeProto] = []
    inlined = 0
    for node in graph.node:
        if node.op_type != "If" or node.domain or node.input[0] not in known:
            nodes.append(node)
            continue
        inlined += 1
        taken = "then_branch" if onnx.numpy_helper.to_array(known[node.input[0]]).item() else "else_branch"
        branch = next(attribute.g for attribute in node.attribute if attribute.name == taken)
        graph.initializer.extend(branch.initializer)
        nodes.extend(branch.node)
        for value, name in zip(branch.output, node.output, strict=True):
            nodes.append(onnx.helper.make_node("Identity", [value.name], [name], name=f"{node.name}/{name}"))
    if inlined:
        set_nodes(graph, nodes)
    return inlined + inner_inlined


def count_nodes(graph: onnx.GraphProto) -> int:
    """Nodes of the graph and of everything inside of it."""
    return sum(1 for _ in all_nodes(graph))
