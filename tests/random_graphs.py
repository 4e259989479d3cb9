"""Random graphs with branches, If, Loop and Scan in fp32, fp16 and int8, and a backend that gets one node of them wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from engineworks.model.graphs import all_graphs, set_nodes
from engineworks.steps.blame.probe import Answer
from engineworks.steps.blame.values import WORST, row_error_of

WIDTH, ROWS = 8, 4
OPSET = [helper.make_opsetid("", 18)]


CONTROLLED = ("if", "loop", "scan")


def random_graph(nodes: int, seed: int, *, controlled: bool = True, precision: str = "fp32") -> onnx.ModelProto:
    """x [batch,8] → y [batch,8]: about `nodes` nodes in branches that part and join, none of which is without effect.

    precision: fp32, fp16 (all tensors), or int8 (products between Q/DQ with scales per channel).
    """
    random = np.random.default_rng(seed)
    made: list[onnx.NodeProto] = []
    weights: list[onnx.TensorProto] = []
    open_ends = ["x"]
    while len(made) < nodes - 4:
        kind = random.choice(["product", "norm", "gelu", "bias", "fork", "join", "heads", *CONTROLLED])
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
        chosen = str(kind) if controlled or kind not in CONTROLLED else "bias"
        made += _nodes(chosen, name, source, weights, random, quantized=precision == "int8")
        open_ends[open_ends.index(source)] = name
    y = open_ends[0]
    for number, other in enumerate(open_ends[1:]):
        made.append(helper.make_node("Add", [y, other], [f"sum{number}"], name=f"sum{number}"))
        y = f"sum{number}"
    made.append(helper.make_node("Identity", [y], ["y"], name="last"))
    x, out = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", WIDTH]) for n in ("x", "y"))
    model = helper.make_model(
        helper.make_graph(made, "random", [x], [out], weights), opset_imports=OPSET, ir_version=10
    )
    return _halved(model) if precision == "fp16" else model


def _halved(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph with every float as a float16."""
    for graph in all_graphs(model.graph):
        for value in (*graph.input, *graph.output):
            if value.type.tensor_type.elem_type == TensorProto.FLOAT:
                value.type.tensor_type.elem_type = TensorProto.FLOAT16
        for tensor in graph.initializer:
            if tensor.data_type == TensorProto.FLOAT:
                half = numpy_helper.to_array(tensor).astype(np.float16)
                tensor.CopyFrom(numpy_helper.from_array(half, tensor.name))
    return model


def _nodes(
    kind: str, name: str, source: str, weights: list[onnx.TensorProto], random: np.random.Generator, *, quantized: bool
) -> list[onnx.NodeProto]:
    def weight(suffix: str, array: Any) -> str:
        weights.append(numpy_helper.from_array(np.asarray(array), f"{name}.{suffix}"))
        return f"{name}.{suffix}"

    if kind == "product":
        q, _ = np.linalg.qr(random.normal(size=(WIDTH, WIDTH)))
        if not quantized:
            return [helper.make_node("MatMul", [source, weight("w", q.astype(np.float32))], [name], name=name)]
        scales = np.abs(q).max(axis=0) / 127
        fixed = weight("w", np.round(q / scales).astype(np.int8))
        per_channel, zeros = weight("ws", scales.astype(np.float32)), weight("wz", np.zeros(WIDTH, np.int8))
        step = [weight("s", np.array(0.05, np.float32)), weight("z", np.array(0, np.int8))]
        return [
            helper.make_node("QuantizeLinear", [source, *step], [f"{name}.q"], name=f"{name}/q"),
            helper.make_node("DequantizeLinear", [f"{name}.q", *step], [f"{name}.dq"], name=f"{name}/dq"),
            helper.make_node(
                "DequantizeLinear", [fixed, per_channel, zeros], [f"{name}.dw"], name=f"{name}/dw", axis=1
            ),
            helper.make_node("MatMul", [f"{name}.dq", f"{name}.dw"], [name], name=name),
        ]
    if kind == "heads":  # lengths that the graph computes
        first, tail = weight("first", np.array([0])), weight("tail", np.array([2, WIDTH // 2]))
        return [
            helper.make_node("Shape", [source], [f"{name}.shape"], name=f"{name}/shape"),
            helper.make_node("Gather", [f"{name}.shape", first], [f"{name}.rows"], name=f"{name}/rows"),
            helper.make_node("Concat", [f"{name}.rows", tail], [f"{name}.split"], name=f"{name}/split", axis=0),
            helper.make_node("Reshape", [source, f"{name}.split"], [f"{name}.heads"], name=f"{name}/heads"),
            helper.make_node("Softmax", [f"{name}.heads"], [f"{name}.soft"], name=f"{name}/soft", axis=-1),
            helper.make_node("Reshape", [f"{name}.soft", f"{name}.shape"], [f"{name}.flat"], name=f"{name}/flat"),
            helper.make_node("Add", [source, f"{name}.flat"], [name], name=name),
        ]
    if kind == "scan":  # over the rows: each is added to half of what came before
        state, row, after = f"{name}.state", f"{name}.row", f"{name}.next"
        half, start = weight("half", np.array(0.5, np.float32)), weight("start", np.zeros(WIDTH, np.float32))
        body = helper.make_graph(
            [
                helper.make_node("Mul", [state, half], [f"{name}.less"], name=f"{name}/body/less"),
                helper.make_node("Add", [row, f"{name}.less"], [after], name=f"{name}/body/sum"),
                helper.make_node("Tanh", [after], [f"{name}.out"], name=f"{name}/body/bend"),
            ],
            f"{name}.body",
            [helper.make_tensor_value_info(n, TensorProto.FLOAT, [WIDTH]) for n in (state, row)],
            [helper.make_tensor_value_info(n, TensorProto.FLOAT, [WIDTH]) for n in (after, f"{name}.out")],
        )
        scan = helper.make_node(
            "Scan", [start, source], [f"{name}.last", f"{name}.rows"], name=f"{name}/scan", body=body, num_scan_inputs=1
        )
        return [scan, helper.make_node("Add", [source, f"{name}.rows"], [name], name=name)]
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

    beside: a node that has to be in the part, too, as in a wrong fusion. dynamic: only parts with dynamic shapes are
    spoiled.
    """

    def __init__(self, kind: str, fault: str, beside: str = "", *, dynamic: bool = False) -> None:
        self.kind, self.fault, self.beside, self.dynamic, self.builds = kind, fault, beside, dynamic, 0

    def probe(
        self, model: onnx.ModelProto, feeds: Mapping[str, Any], wanted: Mapping[str, Any],
        shapes: Mapping[str, Sequence[int]] = MappingProxyType({}),
    ) -> Answer:  # fmt: skip
        self.builds += 1
        names = {node.name for graph in all_graphs(model.graph) for node in graph.node}
        part = onnx.ModelProto()
        part.CopyFrom(model)
        if (shapes or not self.dynamic) and self.fault in names and (not self.beside or self.beside in names):
            if self.kind == "crash":
                return Answer(crash=f"a part crashed with SIGSEGV after {self.builds} s")
            for graph in all_graphs(part.graph):
                _spoil(graph, self.fault, self.kind)
        return Answer({n: min(row_error_of(a, wanted[n]), WORST) for n, a in run(part, feeds).items()})


def _spoil(graph: onnx.GraphProto, fault: str, kind: str) -> None:
    """What the node makes goes through a node that spoils it."""
    at = next((i for i, node in enumerate(graph.node) if node.name == fault), None)
    if at is None:
        return
    node = graph.node[at]
    result = node.output[0]
    node.output[0] = f"{result}.right"
    rows: dict[str, tuple[str, Any]] = {
        "weight": ("Mul", np.linspace(0.5, 1.5, WIDTH)),
        "scale": ("Mul", 3.0),
        "nan": ("Add", np.nan),
    }
    if kind == "shape":
        axes = numpy_helper.from_array(np.array([0]), f"{result}.axes")
        spoiled = [
            helper.make_node("Constant", [], [axes.name], value=axes),
            helper.make_node("ReduceMean", [f"{result}.right", axes.name], [result]),
        ]
    else:
        operator, value = rows[kind]
        tensor = numpy_helper.from_array(np.asarray(value, np.float32), f"{result}.by")
        spoiled = [
            helper.make_node("Constant", [], [tensor.name], value=tensor),
            helper.make_node("CastLike", [tensor.name, f"{result}.right"], [f"{tensor.name}.typed"]),
            helper.make_node(operator, [f"{result}.right", f"{tensor.name}.typed"], [result]),
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
