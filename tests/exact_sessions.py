"""Sessions of ONNX Runtime for tests, opened as the product opens its own: see `model.ort.exact_options`."""

from __future__ import annotations

from typing import Any

import onnx
import onnxruntime

from engineworks.model.ort import exact_options


def open_exact(model: onnx.ModelProto) -> Any:
    """A session on the CPU whose int8 products do not saturate, on this processor or another. Q/DQ run as they are
    written: without VNNI, ONNX Runtime has no exact kernel for a shared weight, nor for one on the left."""
    options = exact_options()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
