"""Walks over a model: its graphs, the branches and bodies inside its nodes, and every tensor that is stored in it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx


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
    """Tensors that the node reads: its inputs, and whatever the graphs inside of it read (their own tensors too,
    which no one confuses where names are unique)."""
    yield from (name for name in node.input if name)
    for inner in subgraphs(node):
        yield from (value.name for value in inner.output)
        for inner_node in inner.node:
            yield from names_read(inner_node)


def node_label(node: onnx.NodeProto) -> str:
    """How a message calls the node: by its name, else by what it makes."""
    return f"node '{node.name}'" if node.name else f"the node that makes '{next(iter(node.output), '')}'"


def _stored_in_nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.TensorProto]:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
        for graph in subgraphs(node):
            yield from graph.initializer
            yield from _stored_in_nodes(graph.node)
