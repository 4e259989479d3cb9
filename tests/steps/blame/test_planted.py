"""Planted faults in larger graphs of every precision, with dynamic shapes, and in lowered models (slow)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from random_graphs import OPSET, ROWS, WIDTH, FaultyBackend, random_graph, run

from engineworks.model.graphs import all_nodes
from engineworks.steps.blame import lowered
from engineworks.steps.blame.graph import Graph
from engineworks.steps.blame.search import Found, blame_engine, most_builds
from engineworks.steps.blame.values import allowed, error_of, tolerance

PLACES = ("MatMul", "LayerNormalization", "Add", "Tanh", "QuantizeLinear", "DequantizeLinear", "Reshape", "Concat")
SIZES = [
    20,
    60,
    pytest.param(300, marks=pytest.mark.slow),
    pytest.param(2000, marks=[pytest.mark.slow, pytest.mark.timeout(1800)]),
]


def feeds(rows: int, precision: str) -> dict[str, Any]:
    x = np.random.default_rng(rows).normal(size=(rows, WIDTH))
    return {"x": x.astype(np.float16 if precision == "fp16" else np.float32)}


class Case:
    """A graph, its values at two batches, and the search in it."""

    def __init__(self, nodes: int, seed: int, precision: str) -> None:
        self.precision, self.model = precision, random_graph(nodes, seed, precision=precision)
        self.graph = Graph(self.model)
        self.values = self.reference(self.model, feeds(ROWS, precision))[0]
        self.other = self.reference(self.model, feeds(ROWS + 2, precision))[0]
        self.allowed = allowed(dict.fromkeys(self.values, 0.0), precision)

    def reference(self, model: onnx.ModelProto, given: Any) -> tuple[dict[str, Any], dict[str, float]]:
        values = {**given, **run(Graph(model).marked(), given)}
        return values, allowed(dict.fromkeys(values, 0.0), self.precision)

    def shows(self, kind: str, node: str) -> bool:
        """Whether the fault reaches the model's output: a norm hides a wrong scale."""
        given = {"x": self.values["x"]}
        try:
            answer = FaultyBackend(kind, node).probe(self.model, given, {"y": self.values["y"]})
        except Exception:  # noqa: BLE001 - such a fault makes an invalid model here
            return False
        return bool(answer.crash) or answer.errors["y"] > self.allowed["y"]

    def blamed(self, backend: FaultyBackend) -> Found | None:
        return blame_engine(self.graph, self.values, self.allowed, backend, self.reference, lambda: self.other)

    def faults(self, kind: str, count: int) -> Iterator[str]:
        """Up to so many faults that show, of the first 12 of a large graph: deep in float16 most are hidden."""
        random = np.random.default_rng(len(kind))
        nodes = [n.name for n in self.model.graph.node if n.op_type in PLACES and self._may(kind, n.op_type)]
        tried = 12 if len(self.graph.nodes) > 1000 else len(nodes)
        shown = (str(n) for n in random.permutation(nodes)[:tried] if self.shows(kind, str(n)))
        yield from (name for name, _ in zip(shown, range(count), strict=False))

    @staticmethod
    def _may(kind: str, operator: str) -> bool:
        """Only floats can be spoiled; what computes lengths and Q/DQ may crash."""
        return kind == "crash" or operator not in ("QuantizeLinear", "Reshape", "Concat")


def whole_unit(found: Found, fault: str) -> bool:
    """Whether the fault was found alone, or with what no builder can part from it: a Q with its DQ."""
    names = [label.partition(" ")[0] for label in found.labels]
    return fault in names and len(found.nodes) <= (2 if fault.endswith(("/q", "/dq")) else 1)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("nodes", SIZES)
@pytest.mark.parametrize("dynamic", [False, True], ids=["any shape", "dynamic shapes only"])
def test_a_planted_fault_is_named_within_its_builds(nodes: int, precision: str, dynamic: bool) -> None:
    case = Case(nodes, nodes + len(precision), precision)
    searched = 0
    for kind in ("weight", "scale", "shape", "nan", "crash"):
        for fault in case.faults(kind, 2 if nodes == 300 else 1):
            searched += 1
            backend = FaultyBackend(kind, fault, dynamic=dynamic)
            found = case.blamed(backend)
            assert found is not None, (kind, fault)
            assert whole_unit(found, fault), (kind, fault, found.labels, found.notes)
            assert backend.builds == found.builds <= most_builds(case.graph.count)
            assert bool(found.other) == dynamic
            again = backend.probe(found.model(), found.feeds(), found.wanted(), found.shapes())
            assert again.crash or max(again.errors.values()) > case.allowed["y"]
    assert searched >= 3


@pytest.mark.parametrize("kind", ["scale", "nan", "crash"])
@pytest.mark.parametrize("precision", ["fp32", pytest.param("fp16", marks=pytest.mark.slow)])
def test_a_fault_in_a_body_is_named_there(kind: str, precision: str) -> None:
    case = Case(120, 9, precision)
    inner = [n.name for n in all_nodes(case.model.graph) if "/body/bend" in n.name]
    shown = [name for name in inner if case.shows(kind, name)][:6]
    assert shown
    for fault in shown:
        backend = FaultyBackend(kind, fault)
        found = case.blamed(backend)
        assert found is not None
        assert (whole_unit(found, fault), len(found.inside)) == (True, 1), (fault, found.labels)
        assert backend.builds <= most_builds(case.graph.count)


def planted(model: onnx.ModelProto, kind: str, node: onnx.NodeProto) -> onnx.ModelProto:
    """The model with another weight, another Q/DQ scale, NaN or another shape at a node: what a wrong lowering makes."""
    spoiled = onnx.ModelProto()
    spoiled.CopyFrom(model)
    wanted = {"weight": f"{node.name}.w", "nan": f"{node.name}.w", "scale": f"{node.name}.ws"}[kind]
    for tensor in spoiled.graph.initializer:
        if tensor.name == wanted:
            array = numpy_helper.to_array(tensor).copy()
            array = array * 0.5 if kind == "scale" else array[::-1] if kind == "weight" else array * np.nan
            tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array), tensor.name))
    return spoiled


def study(folded: onnx.ModelProto, lossy: onnx.ModelProto, given: Any, folder: Path, *, allowed: float) -> Any:
    """What `lowered.main` says of two models."""
    payload: dict[str, Any] = {"allowed": allowed, "out": str(folder / "bundle")}
    for name, model in (("folded", folded), ("lowered", lossy)):
        onnx.save(model, folder / f"{name}.onnx")
        np.savez(folder / f"{name}.npz", **given, **run(Graph(model).marked(), given))
        payload |= {name: str(folder / f"{name}.onnx"), f"{name}_values": str(folder / f"{name}.npz")}
    return lowered.main(payload)


@pytest.mark.parametrize("nodes", SIZES)
@pytest.mark.parametrize(
    ("precision", "kind"), [("fp32", "weight"), ("fp32", "nan"), ("fp16", "nan"), ("int8", "scale")]
)
def test_a_wrong_lowering_is_named_without_a_build(nodes: int, precision: str, kind: str, tmp_path: Path) -> None:
    model = random_graph(nodes, nodes, precision=precision)
    given = feeds(ROWS, precision)
    products = [n for n in model.graph.node if n.op_type == "MatMul"]
    for node in products[:: max(1, len(products) // 2)]:
        spoiled = planted(model, kind, node)
        said = study(model, spoiled, given, tmp_path, allowed=tolerance(precision))
        if said["error"] <= tolerance(precision):
            continue  # a norm after it hides the fault
        assert [piece["node"] for piece in said["blamed"]] == [f"{node.name} (MatMul)"], said
        assert said["left"] <= tolerance(precision)


def chain(nodes: list[onnx.NodeProto], weights: list[onnx.TensorProto]) -> onnx.ModelProto:
    x, y = (helper.make_tensor_value_info(n, TensorProto.DOUBLE, ["batch", WIDTH]) for n in ("x", nodes[-1].output[0]))
    return helper.make_model(helper.make_graph(nodes, "chain", [x], [y], weights), opset_imports=OPSET, ir_version=10)


def test_a_bundle_of_a_piece_that_only_ruins_what_follows_has_it_all(tmp_path: Path) -> None:
    """Every product loses as much; one of them is multiplied by a thousand later."""
    random = np.random.default_rng(3)
    names, nodes, weights = ["x"], list[onnx.NodeProto](), list[onnx.TensorProto]()
    for i in range(4):
        weights.append(numpy_helper.from_array(np.linalg.qr(random.normal(size=(WIDTH, WIDTH)))[0], f"w{i}"))
        nodes.append(helper.make_node("MatMul", [names[-1], f"w{i}"], [f"p{i}"], name=f"p{i}"))
        nodes.append(helper.make_node("Sub", [f"p{i}", f"m{i}"], [f"d{i}"], name=f"d{i}"))
        names.append(f"d{i}")
    given = {"x": random.normal(size=(ROWS, WIDTH))}
    value = given["x"]
    for i in range(4):  # d1 is what little is left of a product
        value = value @ numpy_helper.to_array(weights[i])
        weights.append(numpy_helper.from_array(value * (0.999 if i == 1 else 0.1), f"m{i}"))
        value = value * (0.001 if i == 1 else 0.9)
    folded = chain(nodes, weights)
    lossy = onnx.ModelProto()
    lossy.CopyFrom(folded)
    for tensor in lossy.graph.initializer:
        if tensor.name.startswith("w"):
            array = numpy_helper.to_array(tensor)
            tensor.CopyFrom(numpy_helper.from_array(array + 0.01 * random.normal(size=array.shape), tensor.name))
    said = study(folded, lossy, given, tmp_path, allowed=0.05)
    assert {piece["node"] for piece in said["blamed"]} == {"p0 (MatMul)", "p1 (MatMul)"}  # both are before d1
    files = {n: dict(np.load(tmp_path / f"bundle/{n}.npz")) for n in ("inputs", "expected")}
    got = run(onnx.load(tmp_path / "bundle/model.onnx"), files["inputs"])
    assert error_of(got["d3"], files["expected"]["d3"]) > said["right"] > 0.05
