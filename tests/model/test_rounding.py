"""Noise of one rounding, also in graphs whose opset has no random operator that ONNX Runtime runs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import NodeProto, TensorProto, helper, save

from engineworks.engines.backends.onnxruntime import load_as_written
from engineworks.model.lower.rounding import ROUNDING, graph_with_rounding


def write(path: Path, opset: int, elem_type: int) -> Path:
    """y = x · identity, so that y is x with noise twice: of the input, and of the product."""
    eye = helper.make_tensor("eye", elem_type, [64, 64], np.eye(64).ravel())
    shape = ["n", 64]
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "eye"], ["y"])], "g",
        [helper.make_tensor_value_info("x", elem_type, shape)],
        [helper.make_tensor_value_info("y", elem_type, shape)], [eye],
    )  # fmt: skip
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10), path)
    return path


@pytest.mark.parametrize("elem_type", [TensorProto.FLOAT, TensorProto.FLOAT16])
@pytest.mark.parametrize("opset", [17, 22, 24])
def test_a_value_moves_by_one_rounding(tmp_path, opset, elem_type):
    path = write(tmp_path / "m.onnx", opset, elem_type)
    graph, changed = graph_with_rounding(path)
    assert changed == 2
    dtype = helper.tensor_dtype_to_np_dtype(elem_type)
    x = np.random.default_rng(0).normal(size=(64, 64)).astype(dtype)
    noise = load_as_written(path, graph=graph).run({"x": x})["y"].astype(float) / x.astype(float) - 1
    usual = ROUNDING[elem_type] * (2 / 3) ** 0.5  # of two independent uniform ones
    assert usual * 0.7 < noise.std() < usual * 1.7  # rounding to half precision itself adds to it
    assert abs(noise.mean()) < usual / 10
    assert abs(np.corrcoef(noise[:, :-1].ravel(), noise[:, 1:].ravel())[0, 1]) < 0.1


@pytest.mark.parametrize("opset", [17, 24])
def test_infinity_stays_infinity(tmp_path, opset):
    shape = [2]
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])], "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
    )  # fmt: skip
    path = tmp_path / "m.onnx"
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10), path)
    noisy = load_as_written(path, graph=graph_with_rounding(path)[0])
    assert noisy.run({"x": np.array([np.inf, 0], np.float32)})["y"].tolist() == [np.inf, 0]


def noisy_values(path: Path, nodes: list[NodeProto], shape: tuple[int, int], weights: list[TensorProto]) -> int:
    """Return how many values of x → nodes → y got noise, in a graph that runs with it."""
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)], weights,
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    noisy, changed = graph_with_rounding(path)
    load_as_written(path, graph=noisy).run({"x": np.ones(shape, np.float32)})
    return changed


def test_values_behind_operators_of_onnx_runtime_move_too(tmp_path):
    """y = softmax(fused product of x + x); ONNX infers no type from the product on."""
    eye = helper.make_tensor("eye", TensorProto.FLOAT, [64, 64], np.eye(64).ravel())
    nodes = [
        helper.make_node("Add", ["x", "x"], ["twice"]),
        helper.make_node("FusedMatMul", ["twice", "eye"], ["product"], domain="com.microsoft"),
        helper.make_node("Neg", ["product"], ["negative"]),
        helper.make_node("Softmax", ["negative"], ["y"]),
    ]
    assert noisy_values(tmp_path / "m.onnx", nodes, (2, 64), [eye]) == 3, "input, product and softmax"


def test_integers_get_no_noise(tmp_path):
    """ONNX Runtime's own QuantizeLinear makes uint8 of a float, and its softmax reads and makes uint8."""
    one, zero = (helper.make_tensor(n, t, [], [v]) for n, t, v in [("one", 1, 0.01), ("zero", 2, 0)])
    soft = ["codes", "one", "zero", "one", "zero"]
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "one", "zero"], ["codes"], domain="com.microsoft"),
        helper.make_node("QLinearSoftmax", soft, ["soft"], domain="com.microsoft", axis=-1, opset=17),
        helper.make_node("DequantizeLinear", ["soft", "one", "zero"], ["y"], domain="com.microsoft"),
    ]
    assert noisy_values(tmp_path / "m.onnx", nodes, (2, 8), [one, zero]) == 1, "the input alone"
