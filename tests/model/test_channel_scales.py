"""Products in int8 with one scale: the same numbers, and no sum that would have to be fp16 before it is scaled."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from exact_sessions import open_exact
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from engineworks.model.calibrate.ranges import Range, Ranges
from engineworks.model.lower.half.unquantized import halve_unquantized, scale_channels_after_products
from engineworks.model.lower.quantize import quantize, tensors_to_calibrate

ROWS, INNER, COLUMNS = 5, 64, 6


def weight(name: str, *shape: int, channels: int) -> onnx.TensorProto:
    """Normal weights; channels along that axis differ by a thousand in size, and the last one is zero."""
    values = np.random.default_rng(len(name)).standard_normal(shape)
    sizes = np.geomspace(0.01, 10, shape[channels])
    sizes[-1] = 0
    return numpy_helper.from_array((values * np.moveaxis(sizes[None], -1, channels)).astype(np.float32), name)


def product(op_type: str, **attributes: Any) -> onnx.ModelProto:
    """x f32[rows, inner] times a weight, and a bias where it is a Gemm."""
    shape, channels = ((COLUMNS, INNER), 0) if attributes.get("transB") else ((INNER, COLUMNS), 1)
    bias = numpy_helper.from_array(np.arange(COLUMNS, dtype=np.float32), "c")
    inputs = ["x", "w", "c"] if op_type == "Gemm" else ["x", "w"]
    node = helper.make_node(op_type, inputs, ["y"], name="product", **attributes)
    return model_of([node], [weight("w", *shape, channels=channels), bias], ["n", INNER], ["n", COLUMNS])


def weight_first() -> onnx.ModelProto:
    node = helper.make_node("MatMul", ["w", "x"], ["y"], name="product")
    return model_of([node], [weight("w", COLUMNS, INNER, channels=0)], [INNER, ROWS], [COLUMNS, ROWS])


def shared_weight() -> onnx.ModelProto:
    """The weight of two products, and their sum."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="first"),
        helper.make_node("Tanh", ["x"], ["t"], name="tanh"),
        helper.make_node("MatMul", ["t", "w"], ["b"], name="second"),
        helper.make_node("Add", ["a", "b"], ["y"], name="sum"),
    ]
    return model_of(nodes, [weight("w", INNER, COLUMNS, channels=1)], ["n", INNER], ["n", COLUMNS])


def model_of(
    nodes: list[onnx.NodeProto], weights: list[onnx.TensorProto], shape: list[str | int], output: list[str | int]
) -> onnx.ModelProto:
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", shape), ("y", output)))
    graph = helper.make_graph(nodes, "test", [x], [y], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)


CASES = {
    "MatMul": lambda: product("MatMul"),
    "Gemm": lambda: product("Gemm"),
    "Gemm, transposed": lambda: product("Gemm", transB=1),
    "Gemm, alpha and beta": lambda: product("Gemm", alpha=0.5, beta=3.0),
    "weight first": weight_first,
    "shared weight": shared_weight,
}


def samples(model: onnx.ModelProto) -> NDArray[np.float32]:
    shape = [d.dim_value or ROWS for d in model.graph.input[0].type.tensor_type.shape.dim]
    return np.random.default_rng(0).uniform(-4, 4, shape).astype(np.float32)


def run(model: onnx.ModelProto, x: NDArray[np.float32]) -> NDArray[np.float32]:
    onnx.checker.check_model(model, full_check=True)
    session = open_exact(model)
    result: NDArray[np.float32] = session.run(None, {"x": x})[0]
    return result


def in_int8(model: onnx.ModelProto, **globs: list[str]) -> onnx.ModelProto:
    ranges = Ranges("minmax", 1, {name: Range(4.0, -4.0, 4.0, 0, 1) for name in tensors_to_calibrate(model)})
    return quantize(model, ranges, globs=globs or {"int8": ["*"]}).model


def scales_of(model: onnx.ModelProto) -> dict[str, int]:
    """Values in the scale of each weight."""
    found = {t.name: t for t in model.graph.initializer}
    return {
        n.input[0]: numpy_helper.to_array(found[n.input[1]]).size
        for n in model.graph.node
        if n.op_type == "DequantizeLinear" and n.input[0] in found
    }


@pytest.mark.parametrize("case", CASES)
def test_the_numbers_are_those_of_scales_per_channel(case: str) -> None:
    model = in_int8(CASES[case]())
    x = samples(model)
    before = run(model, x)
    assert set(scales_of(model).values()) == {COLUMNS}
    changed = scale_channels_after_products(model)
    assert set(scales_of(model).values()) == {1}
    assert changed == (("first", "second") if case == "shared weight" else ("product",))
    np.testing.assert_allclose(run(model, x), before, rtol=1e-5, atol=1e-5)


def test_products_of_float_activations_keep_their_scales() -> None:
    model = in_int8(product("MatMul"), int8_weights=["*"])
    before = model.SerializeToString()
    assert scale_channels_after_products(model) == ()
    assert model.SerializeToString() == before


def test_convolutions_keep_their_scales() -> None:
    node = helper.make_node("Conv", ["x", "w"], ["y"], name="convolution")
    model = in_int8(model_of([node], [weight("w", 4, 3, 1, 1, channels=0)], ["n", 3, 8, 8], ["n", 4, 8, 8]))
    assert scale_channels_after_products(model) == ()
    assert set(scales_of(model).values()) == {4}


@pytest.mark.parametrize("case", CASES)
def test_fp16_around_int8_products_has_one_scale_per_weight(case: str) -> None:
    model = CASES[case]()
    x = samples(model)
    wanted = run(model, x)
    halved, _ = halve_unquantized(in_int8(model), model, "float16", [{"x": x}])
    assert set(scales_of(halved).values()) == {1}
    found = run(halved, x)
    assert np.isfinite(found).all()
    assert (found * wanted).sum() / np.linalg.norm(found) / np.linalg.norm(wanted) > 0.999
