"""Planted faults in random graphs: the search names the node, within its builds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from random_graphs import OPSET, ROWS, WIDTH, FaultyBackend, random_graph, run

from engineworks.model.graphs import all_nodes
from engineworks.steps.blame.graph import Graph
from engineworks.steps.blame.search import Found, blame_engine, most_builds
from engineworks.steps.blame.values import tolerance

FEEDS = {"x": np.random.default_rng(0).normal(size=(ROWS, WIDTH)).astype(np.float32)}


def reference(model: onnx.ModelProto, feeds: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, float]]:
    values = run(Graph(model).marked(), feeds)
    return {**feeds, **values}, dict.fromkeys(values, tolerance("fp32"))


def blamed(model: onnx.ModelProto, backend: FaultyBackend) -> Found | None:
    values, allowed = reference(model, FEEDS)
    return blame_engine(Graph(model), values, allowed, backend, reference)


def visible(model: onnx.ModelProto, kind: str, faults: Iterable[tuple[str, ...]], count: int) -> list[FaultyBackend]:
    """Backends with one of these faults each that shows in the model's output: a norm hides a wrong scale."""
    values, allowed = reference(model, FEEDS)
    shown = []
    for fault in faults:
        backend = FaultyBackend(kind, *fault)
        answer = backend.probe(model, FEEDS, {"y": values["y"]})
        if answer.crash or answer.errors["y"] > allowed["y"]:
            backend.builds = 0
            shown.append(backend)
        if len(shown) == count:
            break
    assert len(shown) == count
    return shown


def names(found: Found) -> set[str]:
    return {found.graph.nodes[i].name for i in found.nodes}


@pytest.mark.parametrize("kind", ["weight", "scale", "shape", "nan", "crash"])
@pytest.mark.parametrize(("nodes", "seed"), [(20, 1), (60, 2), (150, 3)])
def test_a_planted_fault_is_found_alone(kind: str, nodes: int, seed: int) -> None:
    model = random_graph(nodes, seed)
    random = np.random.default_rng(seed)
    faults = [n.name for n in model.graph.node if n.op_type in ("MatMul", "LayerNormalization", "Add", "Tanh")]
    for backend in visible(model, kind, [(str(f),) for f in random.permutation(faults)], 2):
        found = blamed(model, backend)
        assert found is not None
        assert names(found) == {backend.fault}
        assert backend.builds <= most_builds(found.graph.count)
        assert found.notes == ()


@pytest.mark.parametrize("kind", ["scale", "nan", "crash"])
def test_a_fault_inside_of_a_branch_or_a_body_is_found_there(kind: str) -> None:
    model = random_graph(80, 4)
    taken = _taken_branches(model)
    inner = [n.name for n in all_nodes(model.graph) if n.name.endswith("/body/bend") or n.name in taken]
    for backend in visible(model, kind, [(name,) for name in inner], 4):
        found = blamed(model, backend)
        assert found is not None
        assert names(found) == {backend.fault}
        assert len(found.inside) == 1
        assert backend.builds <= most_builds(len(list(all_nodes(model.graph))))


def _taken_branches(model: onnx.ModelProto) -> set[str]:
    values, _ = reference(model, FEEDS)
    return {
        f"{node.name}/{'then' if values[node.input[0]] else 'else'}/tanh"
        for node in model.graph.node if node.op_type == "If"
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["weight", "crash"])
def test_a_wrong_fusion_is_found_with_all_of_its_nodes(kind: str) -> None:
    model = random_graph(120, 5, controlled=False)
    makers = {node.output[0]: node.name for node in model.graph.node}
    pairs = [(n.name, makers[n.input[0]]) for n in model.graph.node if n.op_type == "MatMul" and n.input[0] in makers]
    for backend in visible(model, kind, pairs, 3):
        found = blamed(model, backend)
        assert found is not None
        assert names(found) == {backend.fault, backend.beside}
        assert backend.builds <= most_builds(found.graph.count)


@pytest.mark.parametrize("nodes", [400, pytest.param(2000, marks=pytest.mark.slow)])
def test_large_graphs_take_no_more_builds_than_promised(nodes: int) -> None:
    model = random_graph(nodes, 6)
    assert len(model.graph.node) > nodes - 10
    faults = [n.name for n in model.graph.node[int(0.6 * nodes) :] if n.op_type == "MatMul"]
    for kind in ("weight", "crash"):
        (backend,) = visible(model, kind, [(name,) for name in faults], 1)
        found = blamed(model, backend)
        assert found is not None
        assert names(found) == {backend.fault}
        assert backend.builds <= most_builds(nodes) <= 31


def test_an_engine_that_is_right_is_not_blamed() -> None:
    assert blamed(random_graph(40, 7), FaultyBackend("scale", "no such node")) is None


def test_another_crash_of_a_part_is_not_the_fault() -> None:
    class Picky(FaultyBackend):
        def probe(self, model: onnx.ModelProto, feeds: Mapping[str, Any], wanted: Mapping[str, Any]) -> Any:
            answer = super().probe(model, feeds, wanted)
            if len(model.graph.node) == 1 and not answer.crash:
                from engineworks.steps.blame.probe import Answer

                return Answer(crash="the parser refuses networks of one node")
            return answer

    model = random_graph(40, 8, controlled=False)
    fault = next(n.name for n in model.graph.node[20:] if n.op_type == "MatMul")
    found = blamed(model, Picky("crash", fault))
    assert found is not None
    assert names(found) == {fault}


def test_lengths_that_the_graph_computes_are_constants_of_a_part() -> None:
    """A builder takes no shape that is only known when it runs."""
    nodes = [
        helper.make_node("Shape", ["x"], ["lengths"], name="shape"),
        helper.make_node("Relu", ["x"], ["r"], name="relu"),
        helper.make_node("Reshape", ["r", "lengths"], ["s"], name="reshape"),
        helper.make_node("Tanh", ["s"], ["y"], name="last"),
    ]
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", WIDTH]) for n in ("x", "y")]
    model = helper.make_model(helper.make_graph(nodes, "g", values[:1], values[1:]), opset_imports=OPSET, ir_version=10)
    (backend,) = visible(model, "weight", [("reshape",)], 1)
    found = blamed(model, backend)
    assert found is not None
    assert names(found) == {"reshape"}
    assert found.feeds().keys() == {"r"}
    assert [tensor.name for tensor in found.model().graph.initializer] == ["lengths"]
