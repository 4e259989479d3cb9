"""Faults of many kinds that no line of the search knows: each is a rewrite of one node, or of several."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from random_graphs import OPSET, run

from engineworks.model.graphs import all_graphs, set_nodes
from engineworks.steps.blame.graph import Graph
from engineworks.steps.blame.probe import Answer
from engineworks.steps.blame.search import Found, blame_engine, most_builds
from engineworks.steps.blame.values import WORST, error_of, row_error_of, tolerance

Rewrite = Callable[[onnx.NodeProto], list[onnx.NodeProto]]
ROWS, MANY = 4, 64


@dataclass
class Wrong:
    """Runs parts in ONNX Runtime with `rewrite` in place of the node `fault`. Without one the
    part crashes. dynamic: only with dynamic shapes."""

    fault: str
    rewrite: Rewrite | None = None
    builds: int = 0
    dynamic: bool = False

    def probe(
        self, model: onnx.ModelProto, feeds: Mapping[str, Any], wanted: Mapping[str, Any],
        shapes: Mapping[str, Sequence[int]] = MappingProxyType({}),
    ) -> Answer:  # fmt: skip
        self.builds += 1
        part = onnx.ModelProto()
        part.CopyFrom(model)
        for graph in all_graphs(part.graph):
            for at, node in enumerate(graph.node):
                if node.name == self.fault and (shapes or not self.dynamic):
                    if self.rewrite is None:
                        return Answer(crash="a part crashed with SIGABRT")
                    set_nodes(graph, [*graph.node[:at], *self.rewrite(node), *graph.node[at + 1 :]])
                    break
        return Answer({n: min(row_error_of(a, wanted[n]), WORST) for n, a in run(part, feeds).items()})


def weight(name: str, value: Any) -> onnx.TensorProto:
    return numpy_helper.from_array(np.asarray(value), name)


def constant(name: str, value: Any) -> onnx.NodeProto:
    return helper.make_node("Constant", [], [name], value=weight(name, value))


def network() -> onnx.ModelProto:
    """x [batch, 3, 4, 4] → y [batch, 6], z [batch, 1]: resize, product, softmax with a mask, norm, lengths, an If and integers."""
    random = np.random.default_rng(0)
    branch = {
        f"{way}_branch": helper.make_graph(
            [helper.make_node(op, ["n"], [f"{way}.out"], name=f"{way}/{op}")],
            way, [], [helper.make_tensor_value_info(f"{way}.out", TensorProto.FLOAT, None)],
        )
        for way, op in (("then", "Tanh"), ("else", "Neg"))
    }  # fmt: skip
    node = helper.make_node
    nodes = [
        node("Resize", ["x", "", "scales"], ["r"], name="resize", mode="linear"),
        node("Flatten", ["r"], ["f"], name="flat"),
        node("MatMul", ["f", "w"], ["p"], name="product"),
        node("Mul", ["p", "small"], ["ps"], name="shrink"),
        node("LayerNormalization", ["ps", "one"], ["l"], name="norm", epsilon=1e-3),
        node("MatMul", ["l", "square"], ["q"], name="square product"),
        node("Greater", ["q", "zero"], ["on"], name="mask"),
        node("Where", ["on", "q", "low"], ["masked"], name="hide"),
        node("Softmax", ["masked"], ["s"], name="softmax"),
        node("Add", ["s", "l"], ["n"], name="join"),
        node("ReduceMax", ["n"], ["top"], name="top", keepdims=0),
        node("Greater", ["top", "zero"], ["positive"], name="positive"),
        node("If", ["positive"], ["chosen"], name="choose", **branch),
        node("ArgMin", ["q"], ["best"], name="best", axis=1),
        node("Mul", ["best", "large"], ["scaled"], name="index"),
        node("Mod", ["scaled", "modulus"], ["bucket"], name="bucket"),
        node("Cast", ["bucket"], ["z"], name="number", to=TensorProto.FLOAT),
        node("Exp", ["l"], ["e"], name="exp"),
        node("ReduceSum", ["e", "axes"], ["total"], name="total"),
        node("Div", ["e", "total"], ["share"], name="share"),
        node("Add", ["chosen", "share"], ["y"], name="last"),
    ]
    weights = {
        "scales": np.array([1, 1, 2, 2], np.float32), "w": random.normal(size=(192, 6)).astype(np.float32),
        "small": np.float32(0.002), "one": np.ones(6, np.float32),
        "square": random.normal(size=(6, 6)).astype(np.float32), "zero": np.float32(0), "low": np.float32(-1e4),
        "large": np.int64(70_000_000_000), "modulus": np.int64(97), "axes": np.array([1]),
    }  # fmt: skip
    shapes: dict[str, list[Any]] = {"x": ["b", 3, 4, 4], "y": ["b", 6], "z": ["b", 1]}
    x, y, z = (helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in shapes.items())
    graph = helper.make_graph(nodes, "g", [x], [y, z], [weight(n, v) for n, v in weights.items()])
    return helper.make_model(graph, opset_imports=OPSET, ir_version=10)


def changed(node: onnx.NodeProto, **attributes: Any) -> onnx.NodeProto:
    """The node with other attributes."""
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    kept = [a for a in node.attribute if a.name not in attributes]
    del copy.attribute[:]
    copy.attribute.extend([*kept, *(helper.make_attribute(n, v) for n, v in attributes.items())])
    return copy


def after(node: onnx.NodeProto, *more: onnx.NodeProto) -> list[onnx.NodeProto]:
    """The node, whose result is called `right`, and nodes that make the wrong one, `wrong`, of it."""
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    copy.output[0] = "right"
    return [copy, *more, helper.make_node("Identity", ["wrong"], [node.output[0]])]


def one_row(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """Only the last position of the batch is wrong."""
    factor = np.ones((ROWS, 1), np.float32)
    factor[-1] = 1.5
    return after(node, constant("factor", factor), helper.make_node("Mul", ["right", "factor"], ["wrong"]))


def last_of_many(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """The last of `MANY` positions is wrong: too little for the norm of the whole output."""
    factor = np.ones((MANY, 1), np.float32)
    factor[-1] = 1.3
    return after(node, constant("factor", factor), helper.make_node("Mul", ["right", "factor"], ["wrong"]))


def transposed(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    turn = helper.make_node("Transpose", [node.input[1]], ["turned"], perm=[1, 0])
    return [turn, helper.make_node("MatMul", [node.input[0], "turned"], node.output)]


def in_half(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """A norm whose epsilon is lost, as in float16 where it is below the smallest number."""
    return [changed(node, epsilon=1e-12)]


def in_int32(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """A product of integers that overflows."""
    bits = constant("bits", np.int64(2**31))
    return after(node, bits, helper.make_node("Mod", ["right", "bits"], ["wrong"]))


def infinite(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """A mask of −∞, times 0 where nothing is hidden: NaN is born in the middle."""
    return [
        helper.make_node("Cast", [node.input[0]], ["shown"], to=TensorProto.FLOAT),
        constant("infinity", np.float32(np.inf)),
        constant("unit", np.float32(1)),
        helper.make_node("Sub", ["unit", "shown"], ["hidden"]),
        helper.make_node("Mul", ["hidden", "infinity"], ["masking"]),
        helper.make_node("Sub", [node.input[1], "masking"], node.output),
    ]


def swapped(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    branches = {a.name: a.g for a in node.attribute}
    return [changed(node, then_branch=branches["else_branch"], else_branch=branches["then_branch"])]


def unstable(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """An exponential that overflows to infinity."""
    limit, much = constant("limit", np.float32(0.2)), constant("much", np.float32(np.inf))
    over = helper.make_node("Greater", [node.input[0], "limit"], ["over"])
    return after(node, limit, much, over, helper.make_node("Where", ["over", "much", "right"], ["wrong"]))


CASES: dict[str, tuple[str, Rewrite | None]] = {
    "NaN from infinity times zero": ("hide", infinite),
    "a crash in a branch": ("then/Tanh", None),
    "one position of the batch": ("square product", one_row),
    "infinity in the middle": ("exp", unstable),
    "integers overflow": ("index", in_int32),
    "another mode of Resize": ("resize", lambda node: [changed(node, mode="nearest")]),
    "a transposed weight": ("square product", transposed),
    "swapped branches": ("choose", swapped),
    "epsilon lost in a norm": ("norm", in_half),
    "another axis": ("softmax", lambda node: [changed(node, axis=0)]),
    "the last of equals": ("mask", lambda node: [helper.make_node("Less", node.input, node.output)]),
}


def blamed(backend: Wrong, batch: int = ROWS) -> Found | None:
    def reference(part: onnx.ModelProto, given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, float]]:
        values = {**given, **run(Graph(part).marked(), given)}
        return values, dict.fromkeys(values, tolerance("fp32"))

    model, random = network(), np.random.default_rng(2)
    rows = random.normal(size=(batch + 2, 3, 4, 4)).astype(np.float32)
    values, allowed = reference(model, {"x": rows[:batch]})
    other = reference(model, {"x": rows})[0]
    return blame_engine(Graph(model), values, allowed, backend, reference, lambda: other)


@pytest.mark.parametrize("case", CASES)
def test_a_fault_of_any_kind_is_named(case: str) -> None:
    fault, rewrite = CASES[case]
    backend = Wrong(fault, rewrite)
    found = blamed(backend)
    assert found is not None
    assert [label.rpartition(" (")[0] for label in found.labels] == [fault], (found.labels, found.notes)
    assert backend.builds <= most_builds(found.graph.count + len(network().graph.node))


def test_a_fault_at_one_dynamic_shape_only_is_named() -> None:
    backend = Wrong("norm", in_half, dynamic=True)
    found = blamed(backend)
    assert found is not None
    assert found.labels == ["norm (LayerNormalization)"]
    assert found.other is not None


def test_one_position_of_a_large_batch_is_enough() -> None:
    backend = Wrong("square product", last_of_many)
    found = blamed(backend, MANY)
    assert found is not None
    assert found.labels == ["square product (MatMul)"]


def test_the_error_of_a_row_counts_whole_and_small_rows_are_measured_by_the_average_one() -> None:
    wanted = np.ones((64, 8))
    got = wanted.copy()
    got[3] *= 1.05
    assert error_of(got, wanted) < tolerance("fp32") < row_error_of(got, wanted) == pytest.approx(0.05)
    wanted[3], got[3] = 1e-9, 2e-9
    assert row_error_of(got, wanted) < 1e-8
