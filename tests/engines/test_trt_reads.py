"""Inputs that TensorRT's parser drops in silence are refused by name, and no others."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from engineworks.engines.backends._trt_parse import ignored_inputs

trt = pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed")

FLOAT, HALF, INT64, BOOL = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT64, TensorProto.BOOL
Values = dict[str, tuple[int, list[int | str]]]


def parsed_ignored(
    nodes: list[onnx.NodeProto],
    inputs: Values,
    outputs: Values,
    constants: dict[str, np.ndarray] | None = None,
    opset: int = 24,
) -> list[str]:
    """What is ignored of the graph, as the installed parser reads it."""
    from engineworks.engines.backends._trt_log import logger_of

    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(n, t, s) for n, (t, s) in inputs.items()],
        [helper.make_tensor_value_info(n, t, s) for n, (t, s) in outputs.items()],
        [numpy_helper.from_array(v, n) for n, v in (constants or {}).items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    with logger_of(trt).sending(lambda _: None) as logger:
        network = trt.Builder(logger.vendor).create_network(0)
        assert trt.OnnxParser(network, logger.vendor).parse(model.SerializeToString()), logger.reason()
        return ignored_inputs(graph, network, {})


QKV: Values = {n: (HALF, [2, 4, 16, 64]) for n in "qkv"}
Y: Values = {"y": (HALF, [2, 4, 16, 64])}


def attention(lengths: str) -> onnx.NodeProto:
    return helper.make_node("Attention", ["q", "k", "v", "", "", "", lengths], ["y"], name="heads")


def test_an_input_of_the_model_that_no_layer_reads_is_named() -> None:
    found = parsed_ignored([attention("lengths")], {**QKV, "lengths": (INT64, [2])}, Y)
    assert found == ["nonpad_kv_seqlen 'lengths' of Attention (node 'heads')"]


@pytest.mark.parametrize("read_elsewhere", [False, True])
def test_an_inner_tensor_that_its_node_does_not_read_is_named(read_elsewhere: bool) -> None:
    nodes = [helper.make_node("ReduceSum", ["mask", "axis"], ["lengths"], name="sum", keepdims=0), attention("lengths")]
    outputs = dict(Y)
    if read_elsewhere:
        nodes.append(helper.make_node("Cast", ["lengths"], ["seen"], name="cast", to=TensorProto.INT32))
        outputs["seen"] = (TensorProto.INT32, [2])
    found = parsed_ignored(nodes, {**QKV, "mask": (INT64, [2, 16])}, outputs, {"axis": np.array([1])})
    assert found == ["nonpad_kv_seqlen 'lengths' of Attention (node 'heads')"]


def _branch(operator: str, output: str) -> onnx.GraphProto:
    value = helper.make_tensor_value_info(output, FLOAT, ["b", 6])
    return helper.make_graph([helper.make_node(operator, ["x"], [output], name=f"in {output}")], output, [], [value])


def _body() -> onnx.GraphProto:
    return helper.make_graph(
        [helper.make_node("Identity", ["go"], ["goes"]), helper.make_node("Add", ["v", "u"], ["w"], name="step")],
        "body",
        [
            helper.make_tensor_value_info("i", INT64, []),
            helper.make_tensor_value_info("go", BOOL, []),
            helper.make_tensor_value_info("v", FLOAT, ["b", 6]),
        ],
        [helper.make_tensor_value_info("goes", BOOL, []), helper.make_tensor_value_info("w", FLOAT, ["b", 6])],
    )


X: Values = {"x": (FLOAT, ["b", 6])}
OUT: Values = {"y": (FLOAT, ["b", 6])}
node = helper.make_node
RIGHT: dict[str, Callable[[], list[str]]] = {
    "shape only": lambda: parsed_ignored(
        [node("Shape", ["u"], ["s"], name="shape"), node("Expand", ["x", "s"], ["y"], name="expand")],
        {**X, "u": (FLOAT, ["b", 6])}, OUT,
    ),
    "fixed shape only": lambda: parsed_ignored(
        [node("EyeLike", ["x"], ["e"], name="eye"), node("Add", ["e", "u"], ["y"], name="add")],
        {"x": (FLOAT, [4, 4]), "u": (FLOAT, [4, 4])}, {"y": (FLOAT, [4, 4])},
    ),
    "identities": lambda: parsed_ignored(
        [
            node("Identity", ["x"], ["a"], name="one"), node("Cast", ["a"], ["c"], name="two", to=FLOAT),
            node("Dropout", ["c"], ["d"], name="three"), node("Relu", ["d"], ["y"], name="four"),
        ],
        X, OUT,
    ),
    "optional limits": lambda: parsed_ignored(
        [node("Clip", ["x", "low"], ["y"], name="clip")], {**X, "low": (FLOAT, [])}, OUT
    ),
    "lengths of sequences": lambda: parsed_ignored(
        [node("LSTM", ["x", "w", "r", "", "n"], ["y"], name="lstm", hidden_size=8)],
        {"x": (FLOAT, [6, "b", 5]), "n": (TensorProto.INT32, ["b"])}, {"y": (FLOAT, [6, 1, "b", 8])},
        {"w": np.ones((1, 32, 5), np.float32), "r": np.ones((1, 32, 8), np.float32)},
    ),
    "If": lambda: parsed_ignored(
        [node("If", ["c"], ["y"], name="if", then_branch=_branch("Relu", "t"), else_branch=_branch("Erf", "e"))],
        {**X, "c": (BOOL, [])}, OUT,
    ),
    "Loop": lambda: parsed_ignored(
        [node("Loop", ["m", "c", "x"], ["y"], name="loop", body=_body())], {**X, "u": (FLOAT, ["b", 6])}, OUT,
        {"m": np.array(3), "c": np.array(True)},
    ),
    "quantized": lambda: parsed_ignored(
        [
            node("QuantizeLinear", ["x", "s", "z"], ["q"], name="q"),
            node("DequantizeLinear", ["q", "s", "z"], ["d"], name="dq"), node("MatMul", ["d", "w"], ["y"], name="mm"),
        ],
        X, {"y": (FLOAT, ["b", 4])},
        {"s": np.array(0.1, np.float32), "z": np.array(0, np.int8), "w": np.ones((6, 4), np.float32)},
    ),
    "mask": lambda: parsed_ignored(
        [node("Attention", ["q", "k", "v", "m"], ["y"], name="heads")], {**QKV, "m": (BOOL, [2, 1, 16, 16])}, Y
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", RIGHT)
def test_what_is_read_or_needs_no_values_is_not_refused(name: str) -> None:
    assert RIGHT[name]() == []
