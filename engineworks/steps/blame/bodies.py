"""The branch of an If, and any iteration of a Loop or Scan, as models of their own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from engineworks.host.lazy import Array, onnx
from engineworks.model.graphs import names_read, set_nodes
from engineworks.steps.blame.graph import Graph, Values, label, value_info

Feeds = dict[str, Any]

MOST_ITERATIONS = 1 << 16
"""A Loop that may run more often has its end in its condition: how often it runs is searched."""


def inner_model(
    graph: Graph, index: int, values: Values, done: int = 0, carried: Sequence[Array] = ()
) -> tuple[str, onnx.ModelProto, Feeds]:
    """The graph that the node ran: what it is, the model, and its feeds.

    Of an If the branch that was taken; of a Loop or Scan the body after `done` iterations, whose states are `carried`.
    Raises `KeyError` where the reference lacks a value that it needs.
    """
    node = graph.nodes[index]
    if node.op_type == "If":
        taken = bool(np.asarray(graph.value_of(node.input[0], values)).reshape(-1)[0])
        name = "then_branch" if taken else "else_branch"
        return f"{name} of {label(node)}", *_as_model(graph, node, name, [], values)
    if node.op_type == "Loop":
        states = carried if done else [graph.value_of(name, values) for name in node.input[2:]]
        given: list[Array] = [np.array(done, np.int64), np.array(True), *states]
    else:
        states = carried if done else [graph.value_of(n, values) for n in node.input[: _state_count(node)]]
        given = [*states, *(array[done] for array in _scanned(graph, node, values))]
    where = f" in iteration {done + 1}" if done else ""
    return f"body of {label(node)}{where}", *_as_model(graph, node, "body", given, values)


def iterations(graph: Graph, index: int, values: Values) -> int:
    """How often the node may run its body; 0 for an If, `MOST_ITERATIONS` where only a condition ends it."""
    node = graph.nodes[index]
    if node.op_type == "If":
        return 0
    if node.op_type == "Scan":
        return len(_scanned(graph, node, values)[0])
    most = int(np.asarray(graph.value_of(node.input[0], values)).reshape(-1)[0]) if node.input[0] else MOST_ITERATIONS
    return min(most, MOST_ITERATIONS)


def shortened(graph: Graph, index: int, values: Values, count: int) -> tuple[onnx.ModelProto, Feeds]:
    """The Loop or Scan alone, which ends after `count` iterations; the first outputs are the states."""
    node = onnx.NodeProto()
    node.CopyFrom(graph.nodes[index])
    node.output[:] = [name or f"output{i}" for i, name in enumerate(node.output)]
    model = onnx.ModelProto(ir_version=graph.model.ir_version, opset_import=graph.model.opset_import)
    replaced: Feeds = {}
    if node.op_type == "Loop":
        node.input[0] = "iterations"
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(count, np.int64), "iterations"))
    else:  # the rows are in the order of the iterations, along the first axis
        first = _state_count(node)
        replaced = {f"rows{i}": np.ascontiguousarray(a[:count]) for i, a in enumerate(_scanned(graph, node, values))}
        node.input[first:] = list(replaced)
        kept = [a for a in node.attribute if a.name not in ("scan_input_axes", "scan_input_directions")]
        del node.attribute[:]
        node.attribute.extend(kept)
    fixed, weights = graph.closure([node])
    set_nodes(model.graph, [*fixed, node])
    model.graph.initializer.extend(weights)
    model.graph.name = "part"
    feeds = {n: values[n] for n in graph.inputs_of([index]) if n in set(names_read(node))} | replaced
    model.graph.input.extend(value_info(n, np.asarray(v)) for n, v in feeds.items())
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in node.output)
    return model, feeds


def states_of(graph: Graph, index: int, values: Values) -> list[Array]:
    """The states after the last iteration of a shortened node, from its own values."""
    node = graph.nodes[index]
    count = len(node.input) - 2 if node.op_type == "Loop" else _state_count(node)
    return [values[name] for name in node.output[:count]]


def _state_count(scan: onnx.NodeProto) -> int:
    return len(scan.input) - next(int(a.i) for a in scan.attribute if a.name == "num_scan_inputs")


def _scanned(graph: Graph, scan: onnx.NodeProto, values: Values) -> list[Array]:
    """What a Scan reads row by row, with its rows along the first axis in the order of the iterations."""
    attributes = {a.name: list(a.ints) for a in scan.attribute}

    def rows() -> Iterator[Array]:
        for i, name in enumerate(scan.input[_state_count(scan) :]):
            array = np.moveaxis(graph.value_of(name, values), attributes.get("scan_input_axes", {i: 0})[i], 0)
            yield array[::-1] if attributes.get("scan_input_directions", {i: 0})[i] else array

    return list(rows())


def _as_model(
    graph: Graph, node: onnx.NodeProto, name: str, given: Sequence[Array], values: Values
) -> tuple[onnx.ModelProto, Feeds]:
    """The node's graph `name` with what it reads from outside as inputs."""
    body = next(a.g for a in node.attribute if a.name == name)
    model = onnx.ModelProto(ir_version=graph.model.ir_version, opset_import=graph.model.opset_import)
    model.graph.CopyFrom(body)
    del model.graph.input[:]
    feeds = dict(zip((v.name for v in body.input), given, strict=True))
    fixed, weights = graph.closure([node])
    own = {t.name for t in body.initializer}
    set_nodes(model.graph, [*fixed, *body.node])
    model.graph.initializer.extend(w for w in weights if w.name not in own)
    read = {n for inner in model.graph.node for n in names_read(inner)} | {v.name for v in body.output}
    outer = {n: values[n] for n in graph.uses[graph.makers[next(n for n in node.output if n)]] if n in values}
    feeds = {**{n: v for n, v in outer.items() if n in read and n not in feeds}, **feeds}
    model.graph.input.extend(value_info(n, np.asarray(v)) for n, v in feeds.items())
    return model, feeds
