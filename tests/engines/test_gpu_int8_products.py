"""Int8 products with fp16 around them on a real GPU: large sums have to come out as they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from engineworks.engines.backends import tensorrt_rtx
from engineworks.engines.backends.base import BuildRequest
from engineworks.host.gpu import first_gpu
from engineworks.model.calibrate.ranges import Range, Ranges
from engineworks.model.lower.half.unquantized import halve_unquantized
from engineworks.model.lower.quantize import quantize, tensors_to_calibrate
from engineworks.tensors import InputRange, Profile

pytestmark = pytest.mark.gpu

INNER, COLUMNS, ROWS = 768, 256, 32


@pytest.mark.parametrize("op_type", ["MatMul", "Gemm"])
def test_sums_beyond_fp16_are_scaled_before_they_are_rounded(tmp_path: Path, op_type: str) -> None:
    """With scales per channel TensorRT-RTX 1.6 answers with infinities here."""
    gpu = first_gpu()
    assert gpu is not None, "there is no NVIDIA GPU here"
    random = np.random.default_rng(0)
    weight = (random.standard_normal((INNER, COLUMNS)) * np.geomspace(0.1, 10, COLUMNS)).astype(np.float32)
    weight /= np.float32(np.sqrt(INNER))
    bias = random.standard_normal(COLUMNS).astype(np.float32)
    x = random.uniform(-4, 4, (ROWS, INNER)).astype(np.float32)
    inputs = ["x", "w", "c"] if op_type == "Gemm" else ["x", "w"]
    graph = helper.make_graph(
        [helper.make_node(op_type, inputs, ["y"], name="product")], "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", INNER])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", COLUMNS])],
        [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(bias, "c")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    ranges = Ranges("minmax", 1, {name: Range(4.0, -4.0, 4.0, 0, 1) for name in tensors_to_calibrate(model)})
    lowered, _ = halve_unquantized(quantize(model, ranges).model, model, "float16", [{"x": x}])
    onnx.save(lowered, tmp_path / "model.onnx")
    out = tmp_path / "out"
    out.mkdir()
    profile = Profile("all", {"x": InputRange((1, INNER), (ROWS, INNER), (64, INNER))})
    request = BuildRequest(
        tmp_path / "model.onnx", out, "int8", (profile,), (gpu.compute_capability,), computes=("int8", "fp16")
    )
    session = tensorrt_rtx.load(out / tensorrt_rtx.build(request, [].append).file, {})
    found = session.run({"x": x})["y"].astype(np.float64)
    session.close()
    wanted = x.astype(np.float64) @ weight + (bias if op_type == "Gemm" else 0)
    assert np.isfinite(found).all()
    assert np.linalg.norm(found - wanted) < 0.02 * np.linalg.norm(wanted)
