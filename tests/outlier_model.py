"""A repository whose model has one product that int8 ruins: a huge weight in every channel, on a value that is zero."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

SIZE, LAYERS, BAD = 16, 4, 1

RECIPE = """\
# An outlier in the second product.
recipe: outlier
model: {source: {onnx: outlier.onnx}}
inputs: {x: {dtype: float32, shape: [batch, 16]}}
outputs: {y: [batch, 16]}
shapes: {default: {batch: [1, 4, 16]}}
precisions: [fp32, int8]
data:
  calibration: {npz: calib.npz}
  evaluation: {npz: test.npz, labels: label}   # labelled by fp32
calibration:
  method: minmax   # outliers carry meaning
targets: [cpu]
accuracy:
  metric: top1
  limits:
    fp32: {cosine: 0.9999}
    int8: {cosine: 0.99, metric_ratio: 0.9}
"""


def outlier_model() -> onnx.ModelProto:
    """x f32[batch,16] → four times MatMul, Relu → y. Of block 0 the first channel is always 0, and all weights of
    block 1 that read it are 500: its scales leave nothing of the others."""
    random = np.random.default_rng(3)
    nodes, weights, tensor = [], [], "x"
    for layer in range(LAYERS):
        values = random.normal(0, 0.4, (SIZE, SIZE)).astype(np.float32)
        if layer == BAD - 1:
            values[:, 0] = -1.0
        if layer == BAD:
            values[0, :] = 500.0
        weights.append(numpy_helper.from_array(values, f"w{layer}"))
        made = f"t{layer}" if layer < LAYERS - 1 else "y"
        product = f"p{layer}" if layer < LAYERS - 1 else made
        nodes.append(helper.make_node("MatMul", [tensor, f"w{layer}"], [product], name=f"/block{layer}/MatMul"))
        if product != made:
            nodes.append(helper.make_node("Relu", [product], [made], name=f"/block{layer}/Relu"))
        tensor = made
    graph = helper.make_graph(
        nodes,
        "outlier",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", SIZE])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", SIZE])],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)


def samples(count: int) -> np.ndarray:
    return np.random.default_rng(5).uniform(0, 1, (count, SIZE)).astype(np.float32)
