"""Models that bring their own Q/DQ: what passes, and what is refused by the name of its node."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from engineworks.errors import EXIT_BAD_INPUT, ModelError
from engineworks.model.fold import fold_model
from engineworks.model.lower.as_is import check_as_is
from engineworks.tensors import TensorSpec

FLOAT = TensorProto.FLOAT


def quantized(
    dtype: type = np.int8, zero: int = 0, *, bias: bool = False, opset: int = 17, dynamic: bool = False
) -> onnx.ModelProto:
    """y = DQ(Q(x)) @ DQ(w) (+ a bias that is int32 on disk)."""
    stored = {
        "s": np.float32(0.03),
        "z": np.array(zero, dtype),
        "ws": np.full(2, 0.01, np.float32),
        "wz": np.zeros(2, np.int8),
        "w": np.arange(-4, 4).reshape(4, 2).astype(np.int8),
        "b": np.array([5, -7], np.int32),
        "bs": np.full(2, 0.0003, np.float32),
    }
    scale = "dynamic_scale" if dynamic else "s"
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["dynamic_scale"], name="max", keepdims=0),
        helper.make_node("QuantizeLinear", ["x", scale, "z"], ["xq"], name="quantize_x"),
        helper.make_node("DequantizeLinear", ["xq", scale, "z"], ["xd"], name="dequantize_x"),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wd"], name="dequantize_w", axis=1),
        helper.make_node("DequantizeLinear", ["b", "bs"], ["bd"], name="dequantize_b", axis=0),
        helper.make_node("Gemm", ["xd", "wd", "bd"] if bias else ["xd", "wd"], ["y"], name="gemm"),
    ]
    nodes = nodes if dynamic else nodes[1:]
    nodes = nodes if bias else [n for n in nodes if n.name != "dequantize_b"]
    read = {name for n in nodes for name in n.input}
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", FLOAT, ["n", 2])],
        [numpy_helper.from_array(v, n) for n, v in stored.items() if n in read],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def test_symmetric_int8_passes() -> None:
    found = check_as_is(quantized(), "m")
    assert (found.quantize_nodes, found.dequantize_nodes, found.types) == (1, 2, ("int8",))


def test_a_model_without_any_passes() -> None:
    model = quantized()
    del model.graph.node[:]
    assert check_as_is(model, "m").quantize_nodes == 0


@pytest.mark.parametrize(
    ("model", "message", "hint"),
    [
        (quantized(zero=3), r"node 'quantize_x', node 'dequantize_x' has a zero point that is not 0", "symmetric int8"),
        (quantized(np.uint8), r"node 'quantize_x', node 'dequantize_x' stores uint8", "symmetric int8"),
        (quantized(bias=True), r"node 'dequantize_b' makes a bias of int32", "QuantizeBias=False"),
        (quantized(opset=12), r"opset 12, its Q/DQ need 13 \(node 'quantize_x'\)", "opset 13 or later"),
        (quantized(dynamic=True), r"node 'quantize_x', .* has a scale 'dynamic_scale' that is computed", "QDQ format"),
    ],
    ids=["asymmetric", "uint8", "int32 bias", "old opset", "dynamic scale"],
)
def test_what_tensorrt_refuses_is_told_with_the_node_and_what_to_do(
    model: onnx.ModelProto, message: str, hint: str
) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        check_as_is(model, "tiny/as_is/lower")
    assert hint in caught.value.hint
    assert caught.value.exit_code == EXIT_BAD_INPUT


def test_a_type_that_no_zero_point_states_is_uint8_by_the_standard() -> None:
    model = quantized()
    for n in model.graph.node[:2]:
        n.input.pop()
    with pytest.raises(ModelError, match="stores uint8"):
        check_as_is(model, "m")


def test_operators_that_compute_on_integers_are_told() -> None:
    model = quantized()
    model.graph.node.append(helper.make_node("MatMulInteger", ["xq", "w"], ["i"], name="integers"))
    with pytest.raises(ModelError, match=r"node 'integers' computes on integers by itself \(MatMulInteger\)"):
        check_as_is(model, "m")


def test_folding_leaves_weights_quantized(tmp_path: Path) -> None:
    """Q/DQ of constants could be folded away, and the model's own quantization with them."""
    onnx.save(quantized(), str(tmp_path / "model.onnx"))
    x = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    fold_model(
        tmp_path / "model.onnx", tmp_path / "folded.onnx", inputs=(TensorSpec("x", "float32", ("n", 4)),),
        outputs={"y": ("n", 2)}, minimum_opset=13, feeds=[{"x": x}],
    )  # fmt: skip
    folded = onnx.load(str(tmp_path / "folded.onnx"))
    assert [n.op_type for n in folded.graph.node] == [n.op_type for n in quantized().graph.node]
    assert check_as_is(folded, "m").types == ("int8",)
