"""Sessions of ONNX Runtime for tests, opened as the product opens its own: see `ort_forms.exact_options`."""

from __future__ import annotations

from typing import Any

import onnx
import onnxruntime

from engineworks.model.ort_forms import exact_options


def open_exact(model: onnx.ModelProto) -> Any:
    """A session on the CPU whose int8 products do not saturate, on this processor or another."""
    return onnxruntime.InferenceSession(model.SerializeToString(), exact_options(), providers=["CPUExecutionProvider"])
