"""Random graphs with branches, If and Loop, and a backend that gets one node of them wrong."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from engineworks.model.graphs import all_graphs, set_nodes
from engineworks.steps.blame.probe import Answer
from engineworks.steps.blame.values import WORST, error_of

WIDTH, ROWS = 8, 4
OPSET = [helper.make_opsetid("", 18)]


def random_graph(nodes: int, seed: int, *, controlled: bool = True) -> onnx.ModelProto:
    """x f32[4,8] → y f32[4,8]: about `nodes` nodes in branches that part and join, none of which is without effect."""
    random = np.random.default_rng(seed)
    made: list[onnx.NodeProto] = []
    weights: list[onnx.TensorProto] = []
    open_ends = ["x"]
    while len(made) < nodes - 4:
        kind = random.choice(["product", "norm", "gelu", "bias", "fork", "join", "if", "loop"])
        name = f"n{len(made)}"
        source = open_ends[random.integers(len(open_ends))]
        if kind == "fork" and len(open_ends) < 4:
            open_ends.append(source)
            continue
        if kind == "join" and len(open_ends) > 1:
            other = next((e for e in open_ends if e != source), None)
            if other is not None:
                made.append(helper.make_node("Add", [source, other], [name], name=name))
                open_ends.remove(other)
                open_ends[open_ends.index(source)] = name
            continue
        made += _nodes(str(kind) if controlled or kind not in ("if", "loop") else "bias", name, source, weights, random)
        open_ends[open_ends.index(source)] = name
    y = open_ends[0]
    for number, other in enumerate(open_ends[1:]):
        made.append(helper.make_node("Add", [y, other], [f"sum{number}"], name=f"sum{number}"))
        y = f"sum{number}"
    made.append(helper.make_node("Identity", [y], ["y"], name="last"))
    x, out = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", WIDTH]) for n in ("x", "y"))
    return helper.make_model(helper.make_graph(made, "random", [x], [out], weights), opset_imports=OPSET, ir_version=10)


def _nodes(
    kind: str, name: str, source: str, weights: list[onnx.TensorProto], random: np.random.Generator
) -> list[onnx.NodeProto]:
    def weight(suffix: str, array: Any) -> str:
        weights.append(numpy_helper.from_array(np.asarray(array), f"{name}.{suffix}"))
        return f"{name}.{suffix}"

    if kind == "product":
        q, _ = np.linalg.qr(random.normal(size=(WIDTH, WIDTH)))
        return [helper.make_node("MatMul", [source, weight("w", q.astype(np.float32))], [name], name=name)]
    if kind == "norm":
        scale = weight("w", random.uniform(0.8, 1.2, WIDTH).astype(np.float32))
        return [helper.make_node("LayerNormalization", [source, scale], [name], name=name)]
    if kind == "gelu":
        return [
            helper.make_node("Tanh", [source], [f"{name}.tanh"], name=f"{name}/tanh"),
            helper.make_node("Add", [source, f"{name}.tanh"], [name], name=name),
        ]
    if kind == "if":
        flag = weight("at", np.array(0.0, np.float32))
        mean, positive = f"{name}.mean", f"{name}.positive"
        branches = {
            f"{way}_branch": helper.make_graph(
                [
                    helper.make_node("Tanh", [source], [f"{name}.{way}.t"], name=f"{name}/{way}/tanh"),
                    helper.make_node(op, [source, f"{name}.{way}.t"], [f"{name}.{way}"], name=f"{name}/{way}/end"),
                ],
                f"{name}.{way}", [], [helper.make_tensor_value_info(f"{name}.{way}", TensorProto.FLOAT, None)],
            )
            for way, op in (("then", "Add"), ("else", "Sub"))
        }  # fmt: skip
        return [
            helper.make_node("ReduceMean", [source], [mean], name=f"{name}/mean", keepdims=0),
            helper.make_node("Greater", [mean, flag], [positive], name=f"{name}/positive"),
            helper.make_node("If", [positive], [name], name=name, **branches),
        ]
    if kind == "loop":
        trips = weight("trips", np.array(2, np.int64))
        q, _ = np.linalg.qr(random.normal(size=(WIDTH, WIDTH)))
        turn = weight("w", q.astype(np.float32))
        state, passed, after = f"{name}.state", f"{name}.passed", f"{name}.after"
        body = helper.make_graph(
            [
                helper.make_node("MatMul", [state, turn], [f"{name}.turned"], name=f"{name}/body/turn"),
                helper.make_node("Tanh", [f"{name}.turned"], [f"{name}.bent"], name=f"{name}/body/bend"),
                helper.make_node("Add", [f"{name}.bent", source], [after], name=f"{name}/body/end"),
                helper.make_node("Identity", [passed], [f"{name}.go"], name=f"{name}/body/go"),
            ],
            f"{name}.body",
            [
                helper.make_tensor_value_info(f"{name}.i", TensorProto.INT64, []),
                helper.make_tensor_value_info(passed, TensorProto.BOOL, []),
                helper.make_tensor_value_info(state, TensorProto.FLOAT, None),
            ],
            [
                helper.make_tensor_value_info(f"{name}.go", TensorProto.BOOL, []),
                helper.make_tensor_value_info(after, TensorProto.FLOAT, None),
            ],
        )
        return [helper.make_node("Loop", [trips, "", source], [name], name=name, body=body)]
    bias = weight("w", random.normal(size=WIDTH).astype(np.float32))
    return [helper.make_node("Add", [source, bias], [name], name=name)]


class FaultyBackend:
    """Runs parts with ONNX Runtime, but spoils the node `fault`, or crashes where it is in a part.

    beside: a node that has to be in the part, too, as in a wrong fusion.
    """

    def __init__(self, kind: str, fault: str, beside: str = "") -> None:
        self.kind, self.fault, self.beside, self.builds = kind, fault, beside, 0

    def probe(self, model: onnx.ModelProto, feeds: Mapping[str, Any], wanted: Mapping[str, Any]) -> Answer:
        self.builds += 1
        names = {node.name for graph in all_graphs(model.graph) for node in graph.node}
        part = onnx.ModelProto()
        part.CopyFrom(model)
        if self.fault in names and (not self.beside or self.beside in names):
            if self.kind == "crash":
                return Answer(crash=f"a part crashed with SIGSEGV after {self.builds} s")
            for graph in all_graphs(part.graph):
                _spoil(graph, self.fault, self.kind)
        return Answer({n: min(error_of(a, wanted[n]), WORST) for n, a in run(part, feeds).items()})


def _spoil(graph: onnx.GraphProto, fault: str, kind: str) -> None:
    """What the node makes goes through a node that spoils it."""
    at = next((i for i, node in enumerate(graph.node) if node.name == fault), None)
    if at is None:
        return
    node = graph.node[at]
    result = node.output[0]
    node.output[0] = f"{result}.right"
    rows = {
        "weight": ("Mul", np.linspace(0.5, 1.5, WIDTH, dtype=np.float32)),
        "scale": ("Mul", np.array(3.0, np.float32)),
        "nan": ("Add", np.array(np.nan, np.float32)),
    }
    if kind == "shape":
        axes = numpy_helper.from_array(np.array([0]), f"{result}.axes")
        spoiled = [
            helper.make_node("Constant", [], [axes.name], value=axes),
            helper.make_node("ReduceMean", [f"{result}.right", axes.name], [result]),
        ]
    else:
        operator, value = rows[kind]
        tensor = numpy_helper.from_array(value, f"{result}.by")
        spoiled = [
            helper.make_node("Constant", [], [tensor.name], value=tensor),
            helper.make_node(operator, [f"{result}.right", tensor.name], [result]),
        ]
    set_nodes(graph, [*graph.node[: at + 1], *spoiled, *graph.node[at + 1 :]])
    for value_info in (*graph.output, *graph.value_info):
        value_info.type.tensor_type.ClearField("shape")


def run(model: onnx.ModelProto, feeds: Mapping[str, Any]) -> dict[str, Any]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {i.name: feeds[i.name] for i in session.get_inputs()}), strict=True))
