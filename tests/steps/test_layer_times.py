"""Layers of a real engine on the CPU, with the nodes of the lowered model that each holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from conftest import tiny_model
from onnx import TensorProto, helper, numpy_helper

from engineworks.engines.backends import onnxruntime as backend
from engineworks.engines.backends.base import BuildRequest, TimedLayer
from engineworks.measure.layers import Layer
from engineworks.steps.layer_times import mapped, time_limit_s
from engineworks.tensors import InputRange, Profile


def test_a_fused_layer_holds_the_nodes_that_it_came_from(tmp_path: Path) -> None:
    model = tmp_path / "model.onnx"
    onnx.save(tiny_model(), model)
    shape = InputRange((1, 1, 4, 4), (1, 1, 4, 4), (1, 1, 4, 4))
    report = backend.build(BuildRequest(model, tmp_path, "fp32", (Profile("p", {"image": shape}),)), [].append)
    feeds = {"image": np.ones((1, 1, 4, 4), np.float32)}
    source, timed = backend.layer_times(tmp_path / report.file, {}, feeds, 3, ())
    assert source == "ONNX Runtime's profile"
    layers = list(mapped(timed, model))
    assert all(layer.ms > 0 for layer in layers)
    held = [name for layer in layers for name in layer.nodes]
    assert {"conv", "relu", "classifier"} <= set(held)
    assert any({"conv", "relu"} <= set(layer.nodes) for layer in layers)  # Conv and Relu become one


def test_names_within_a_layers_name_are_found(tmp_path: Path) -> None:
    onnx.save(tiny_model(), tmp_path / "model.onnx")
    timed = [
        TimedLayer("conv + relu", "convolution", 1.0, names=("conv", "relu")),
        TimedLayer("__myl_classifier_0x1f", "gemm", 1.0, names=("__myl_classifier_0x1f",)),
        TimedLayer("reformat", "reformat", 0.1, names=("reformat",)),
    ]
    assert [layer.nodes for layer in mapped(timed, tmp_path / "model.onnx")] == [("conv", "relu"), ("classifier",), ()]


def layers_of(
    nodes: list[onnx.NodeProto], weights: dict[str, Any], shape: tuple[int, ...], folder: Path
) -> list[Layer]:
    """The layers of such a model's engine on the CPU, as ONNX Runtime times them. Tensors are x and y."""
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", shape), ("y", None))]
    tensors = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], tensors)
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9), folder / "model.onnx"
    )
    request = BuildRequest(
        folder / "model.onnx", folder, "fp32", (Profile("p", {"x": InputRange(shape, shape, shape)}),)
    )
    report = backend.build(request, [].append)
    _, timed = backend.layer_times(folder / report.file, {}, {"x": np.ones(shape, np.float32)}, 2, ())
    return list(mapped(timed, folder / "model.onnx"))


def held_once(layers: list[Layer], nodes: list[onnx.NodeProto]) -> bool:
    return sorted(name for layer in layers for name in layer.nodes) == sorted(node.name for node in nodes)


def test_convolutions_in_another_layout_hold_their_norms_and_activations(tmp_path: Path) -> None:
    nodes, weights, x = list[onnx.NodeProto](), dict[str, Any](), "x"
    for i in range(3):
        weights |= {f"w{i}": np.ones((16, 16, 3, 3), np.float32)} | {f"{n}{i}": np.ones(16, np.float32) for n in "gbmv"}
        nodes += [
            helper.make_node("Conv", [x, f"w{i}"], [f"c{i}"], name=f"conv{i}", pads=[1] * 4),
            helper.make_node("BatchNormalization", [f"c{i}", *(f"{n}{i}" for n in "gbmv")], [f"n{i}"], name=f"norm{i}"),
            helper.make_node("Relu", [f"n{i}"], ["y" if i == 2 else f"r{i}"], name=f"relu{i}"),
        ]
        x = f"r{i}"
    layers = layers_of(nodes, weights, (1, 16, 8, 8), tmp_path)
    assert held_once(layers, nodes)
    held = [layer.nodes for layer in layers if layer.is_product]
    assert held == [(f"conv{i}", f"norm{i}", f"relu{i}") for i in range(3)]


def test_roundings_on_their_own_and_products_hold_each_node_once(tmp_path: Path) -> None:
    nodes, x = list[onnx.NodeProto](), "x"
    weights = {"s": np.array(0.05, np.float32), "z": np.array(0, np.int8)}
    for i in range(2):
        weights |= {
            f"w{i}": np.ones((8, 8), np.int8), f"ws{i}": np.ones(8, np.float32), f"wz{i}": np.zeros(8, np.int8),
            f"b{i}": np.ones(8, np.float32),
        }  # fmt: skip
        nodes += [
            helper.make_node("QuantizeLinear", [x, "s", "z"], [f"q{i}"], name=f"quantize{i}"),
            helper.make_node("DequantizeLinear", [f"q{i}", "s", "z"], [f"d{i}"], name=f"dequantize{i}"),
            helper.make_node("DequantizeLinear", [f"w{i}", f"ws{i}", f"wz{i}"], [f"v{i}"], name=f"weight{i}", axis=1),
            helper.make_node("MatMul", [f"d{i}", f"v{i}"], [f"p{i}"], name=f"product{i}"),
            helper.make_node("Add", [f"p{i}", f"b{i}"], [f"a{i}"], name=f"bias{i}"),
            helper.make_node("Relu", [f"a{i}"], ["y" if i else "r0"], name=f"relu{i}"),
        ]
        x = "r0"
    layers = layers_of(nodes, weights, (4, 8), tmp_path)
    assert held_once(layers, nodes)
    assert [layer.nodes[0] for layer in layers if layer.is_product] == ["product0", "product1"]


def test_the_profilers_time_limit_follows_the_engine() -> None:
    assert time_limit_s(400, 20, 5.0) > time_limit_s(20, 20, 5.0) > time_limit_s(20, 20, 0.1) >= 60
