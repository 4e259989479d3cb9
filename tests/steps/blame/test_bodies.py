"""Faults that show in a later iteration of a Loop or Scan only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from random_graphs import OPSET, WIDTH, run

from engineworks.model.graphs import all_graphs, set_nodes
from engineworks.steps.blame.graph import Graph
from engineworks.steps.blame.probe import Answer
from engineworks.steps.blame.search import Found, blame_engine
from engineworks.steps.blame.values import WORST, row_error_of, tolerance

STEPS, FROM = 24, 100.0


class Overflowing:
    """A backend that doubles the node `grow` wrong, or crashes there, once its input is above `FROM`."""

    def __init__(self, *, crashes: bool) -> None:
        self.crashes, self.builds = crashes, 0

    def probe(
        self, model: onnx.ModelProto, feeds: Mapping[str, Any], wanted: Mapping[str, Any],
        shapes: Mapping[str, Sequence[int]] = MappingProxyType({}),
    ) -> Answer:  # fmt: skip
        self.builds += 1
        part = onnx.ModelProto()
        part.CopyFrom(model)
        for graph in all_graphs(part.graph):
            _spoil(graph)
        got = run(part, feeds)
        wrong = {n: min(row_error_of(a, wanted[n]), WORST) for n, a in got.items()}
        if self.crashes and any(np.isnan(a).any() for a in got.values() if a.dtype.kind == "f"):
            return Answer(crash=f"a part crashed with SIGSEGV after {self.builds} s")
        return Answer(wrong)


def _spoil(graph: onnx.GraphProto) -> None:
    at = next((i for i, node in enumerate(graph.node) if node.name == "grow"), None)
    if at is None:
        return
    node = graph.node[at]
    (result,), source = node.output, node.input[0]
    node.output[0] = "right"
    values = {"from": np.float32(FROM), "nan": np.float32(np.nan)}
    constants = [
        helper.make_node("Constant", [], [n], value=numpy_helper.from_array(np.array(v), n)) for n, v in values.items()
    ]
    spoiled = [
        *constants,
        helper.make_node("ReduceMax", [source], ["peak"], keepdims=0),
        helper.make_node("Greater", ["peak", "from"], ["over"]),
        helper.make_node("Where", ["over", "nan", "right"], [result]),
    ]
    set_nodes(graph, [*graph.node[: at + 1], *spoiled, *graph.node[at + 1 :]])


def looping(kind: str) -> onnx.ModelProto:
    """x [WIDTH] → y [WIDTH], of a Loop of `STEPS` iterations, or rows [STEPS, WIDTH] → y of a Scan: each iteration
    multiplies the state by 1.3."""
    shape = [WIDTH] if kind == "Loop" else [STEPS, WIDTH]
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [WIDTH]) for n in ("state", "after", "start")]
    inner = [
        helper.make_node("Mul", ["state", "factor"], ["grown"], name="grow"),
        helper.make_node("Tanh", ["state"], ["bent"], name="bend"),
        helper.make_node("Mul", ["bent", "zero"], ["nothing"], name="less"),
        helper.make_node("Add", ["grown", "nothing"], ["after"], name="sum"),
    ]
    if kind == "Loop":
        go = [helper.make_tensor_value_info(n, TensorProto.BOOL, []) for n in ("go", "on")]
        inner.append(helper.make_node("Identity", ["go"], ["on"], name="on"))
        first = helper.make_tensor_value_info("i", TensorProto.INT64, [])
        body = helper.make_graph(inner, "body", [first, go[0], values[0]], [go[1], values[1]])
        node = helper.make_node("Loop", ["steps", "", "start"], ["end"], name="repeat", body=body)
    else:
        row = helper.make_tensor_value_info("row", TensorProto.FLOAT, [WIDTH])
        inner.append(helper.make_node("Add", ["row", "after"], ["seen"], name="see"))
        seen = helper.make_tensor_value_info("seen", TensorProto.FLOAT, [WIDTH])
        body = helper.make_graph(inner, "body", [values[0], row], [values[1], seen])
        node = helper.make_node(
            "Scan", ["start", "x"], ["end", "all"], name="repeat", body=body, num_scan_inputs=1,
            scan_input_directions=[1],
        )  # fmt: skip
    # made by a node that reads constants only, as exporters do
    made = helper.make_node("Expand", ["one", "width"], ["start"], name="begin")
    last = helper.make_node("Mul", ["end", "x"] if kind == "Loop" else ["end", "factor"], ["y"], name="last")
    weights = {
        "factor": np.float32(1.3), "zero": np.float32(0), "one": np.float32(1), "width": np.array([WIDTH]),
        "steps": np.int64(STEPS),
    }  # fmt: skip
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
    if kind == "Loop":  # something of the loop has to move with the input
        made = helper.make_node("Max", ["x", "one"], ["start"], name="begin")
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [WIDTH])
    graph = helper.make_graph(
        [made, node, last], "g", [x], [y], [numpy_helper.from_array(np.asarray(a), n) for n, a in weights.items()]
    )
    return helper.make_model(graph, opset_imports=OPSET, ir_version=10)


def blamed(model: onnx.ModelProto, feeds: Mapping[str, Any], backend: Overflowing) -> Found | None:
    def reference(part: onnx.ModelProto, given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, float]]:
        values = {**given, **run(Graph(part).marked(), given)}
        return values, dict.fromkeys(values, tolerance("fp32"))

    values, allowed = reference(model, feeds)
    return blame_engine(Graph(model), values, allowed, backend, reference)


@pytest.mark.parametrize("kind", ["Loop", "Scan"])
@pytest.mark.parametrize("crashes", [False, True], ids=["wrong", "crashes"])
def test_a_fault_of_a_later_iteration_is_named_in_its_body(kind: str, crashes: bool) -> None:
    model, backend = looping(kind), Overflowing(crashes=crashes)
    shape = [WIDTH] if kind == "Loop" else [STEPS, WIDTH]
    found = blamed(model, {"x": np.full(shape, 0.5, np.float32)}, backend)
    assert found is not None
    assert [label.partition(" ")[0] for label in found.labels] == ["grow"], (found.labels, found.notes)
    first = int(np.ceil(np.log(FROM) / np.log(1.3))) + 1  # the iteration whose state is above FROM
    assert found.inside == (f"body of repeat ({kind}) in iteration {first}",)
    assert found.feeds()["state"].max() > FROM
    assert backend.builds <= 2 * np.log2(Graph(model).count) + 10
