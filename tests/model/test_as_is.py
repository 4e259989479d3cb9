"""Models that bring their own Q/DQ: what passes, and what is refused by the name of its node."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from engineworks.engines.capabilities import why_not
from engineworks.errors import EXIT_BAD_INPUT, ModelError
from engineworks.model.fold.fold import fold_model
from engineworks.model.fold.inventory import node_uses
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


def test_an_opset_without_scales_per_channel_is_refused() -> None:
    with pytest.raises(ModelError, match=r"opset 12, its Q/DQ need 13 \(node 'quantize_x'\)") as caught:
        check_as_is(quantized(opset=12), "tiny/as_is/lower")
    assert "opset 13 or later" in caught.value.hint
    assert caught.value.exit_code == EXIT_BAD_INPUT


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        (
            quantized(zero=3),
            "a zero point that is not 0: QuantizeLinear (node 'quantize_x'), DequantizeLinear (node 'd",
        ),
        (quantized(np.uint8), "reads unsigned quantized values as int8: QuantizeLinear (node 'quantize_x')"),
        (quantized(bias=True), "does not take biases quantized to int32: DequantizeLinear (node 'dequantize_b')"),
    ],
    ids=["asymmetric", "uint8", "int32 bias"],
)
@pytest.mark.parametrize(("backend", "version"), [("tensorrt_rtx", "1.7.1.116"), ("tensorrt", "10.13")])
def test_the_cpu_takes_what_tensorrt_refuses_with_the_node(
    model: onnx.ModelProto, sentence: str, backend: str, version: str
) -> None:
    assert check_as_is(model, "m").quantize_nodes == 1
    uses = node_uses(model)
    assert why_not("onnxruntime", "1.31.1", "as_is", (), operators=uses) is None
    for precision in ("as_is", "fp16", "int8"):
        assert sentence in str(why_not(backend, version, precision, ("8.9",), operators=uses))


def test_scales_that_are_computed_pass() -> None:
    """TensorRT-RTX 1.7 builds them too."""
    assert why_not("tensorrt_rtx", "1.7.1.116", "as_is", ("8.9",), operators=node_uses(quantized(dynamic=True))) is None


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
