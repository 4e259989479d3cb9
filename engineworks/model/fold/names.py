"""Names that later steps can rely on: every node has one, and no two nodes and no two tensors share one."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Iterator, Mapping, MutableSequence

from engineworks.host.lazy import onnx
from engineworks.model.graphs import all_graphs, all_nodes, fresh_name, subgraphs


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
