"""Norms that only ONNX Runtime knows, in ONNX's own operators: the same numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from engineworks.model.fold.preparation import NORM, spell_out_norms


def norm(dtype: Any, opset: int, outputs: tuple[str, ...] = ("y",), **attributes: Any) -> onnx.ModelProto:
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    weight = numpy_helper.from_array(np.linspace(-2, 3, 6).astype(dtype), "weight")
    graph = helper.make_graph(
        [helper.make_node(NORM, ["x", "weight"], list(outputs), stash_type=1, **attributes)], "norm",
        [helper.make_tensor_value_info("x", kind, ["batch", 3, 6])],
        [helper.make_tensor_value_info(o, kind if o == "y" else TensorProto.FLOAT, ["batch", 3, None]) for o in outputs], [weight],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def run(model: onnx.ModelProto, x: Any) -> Any:
    return ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(["y"], {"x": x})[0]


@pytest.mark.parametrize("opset", [13, 17, 18, 21])
@pytest.mark.parametrize(("dtype", "error"), [(np.float32, 1e-6), (np.float16, 2e-3)])
def test_the_numbers_stay(dtype: Any, error: float, opset: int) -> None:
    model = norm(dtype, opset, axis=-1, epsilon=1e-2)
    x = np.random.default_rng(0).normal(size=(2, 3, 6)).astype(dtype) * 100
    expected = run(model, x)
    assert spell_out_norms(model) == 1
    onnx.checker.check_model(model, full_check=True)
    np.testing.assert_allclose(run(model, x), expected, rtol=error)


@pytest.mark.parametrize("more", [{"axis": 1}, {"outputs": ("y", "inverse")}])
def test_another_axis_or_output_stays_as_it_is(more: dict[str, Any], tmp_path: Path) -> None:
    model = norm(np.float32, 17, **more)
    assert spell_out_norms(model) == 0
    assert [node.op_type for node in model.graph.node] == [NORM]
