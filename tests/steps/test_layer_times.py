"""Layers of a real engine on the CPU, with the nodes of the lowered model that each holds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from conftest import tiny_model

from engineworks.engines.backends import onnxruntime as backend
from engineworks.engines.backends.base import BuildRequest
from engineworks.engines.layer_times import TimedLayer
from engineworks.steps.layer_times import mapped
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
