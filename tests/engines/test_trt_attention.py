"""Attention written out as smaller operators gives what ONNX Runtime's own Attention gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from engineworks.engines.backends._trt_parse import written_out
from engineworks.model.graphs import model_nodes

ROWS, HEADS, LENGTH, PAST, SIZE = 2, 2, 4, 3, 8
SHAPES = {name: [ROWS, HEADS, LENGTH, SIZE] for name in ("q", "k", "v", "y", "out", "same")}
SHAPES |= {name: [ROWS, HEADS, PAST, SIZE] for name in ("past_k", "past_v")}
SHAPES |= {name: [ROWS, HEADS, LENGTH + PAST, SIZE] for name in ("new_k", "new_v")}
OTHERS: dict[str, tuple[int, list[int], Any]] = {
    "mask": (TensorProto.BOOL, [LENGTH, LENGTH], np.tril(np.ones((LENGTH, LENGTH), np.bool_))),
    "lengths": (TensorProto.INT64, [ROWS], np.array([2, 4], np.int64)),
    "asked": (TensorProto.BOOL, [], np.array(True)),
}


def value(name: str) -> onnx.ValueInfoProto:
    dtype, shape, _ = OTHERS.get(name, (TensorProto.FLOAT, SHAPES.get(name), None))
    return helper.make_tensor_value_info(name, dtype, shape)


def model_of(opset: int, reads: list[str], makes: list[str], branch: bool, **attributes: Any) -> onnx.ModelProto:
    nodes = [helper.make_node("Attention", reads, makes, name="heads", **attributes)]
    inputs = [name for name in reads if name]
    if branch:
        then = helper.make_graph(nodes, "then", [], [value(name) for name in makes])
        other = helper.make_graph([helper.make_node("Identity", ["q"], ["same"])], "other", [], [value("same")])
        nodes = [helper.make_node("If", ["asked"], ["out"], then_branch=then, else_branch=other)]
        inputs, makes = [*inputs, "asked"], ["out"]
    graph = helper.make_graph(nodes, "graph", [value(name) for name in inputs], [value(name) for name in makes])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=11)


CASES: dict[str, tuple[list[str], list[str], bool, dict[str, Any]]] = {
    "plain": (["q", "k", "v"], ["y"], False, {}),
    "a cache without a mask": (
        ["q", "k", "v", "", "past_k", "past_v"],
        ["y", "new_k", "new_v"],
        False,
        {"is_causal": 1},
    ),
    "in a branch": (["q", "k", "v", "mask"], ["y"], True, {"softcap": 2.0}),
    "lengths without a mask": (["q", "k", "v", "", "", "", "lengths"], ["y"], False, {}),  # an input since opset 24
}
EACH = [(opset, case) for opset in (23, 24, 25) for case in CASES if opset > 23 or "lengths" not in case]


@pytest.mark.parametrize(("opset", "case"), EACH)
def test_the_written_out_model_gives_the_same(tmp_path: Path, opset: int, case: str) -> None:
    reads, makes, branch, attributes = CASES[case]
    model = model_of(opset, reads, makes, branch, **attributes)
    onnx.save(model, tmp_path / "m.onnx")
    plain = written_out(tmp_path / "m.onnx")
    assert plain is not None
    assert "Attention" not in {node.op_type for node in model_nodes(plain)}
    random = np.random.default_rng(0)
    feed = {
        spec.name: OTHERS[spec.name][2] if spec.name in OTHERS else random.normal(size=spec.shape).astype(np.float32)
        for spec in onnxruntime.InferenceSession(model.SerializeToString()).get_inputs()
    }
    wanted, got = (onnxruntime.InferenceSession(each.SerializeToString()).run(None, feed) for each in (model, plain))
    for one, other in zip(wanted, got, strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-5, atol=1e-6)


def test_a_model_without_attention_is_left_alone(tmp_path: Path) -> None:
    graph = helper.make_graph([helper.make_node("Relu", ["q"], ["y"])], "graph", [value("q")], [value("y")])
    onnx.save(helper.make_model(graph, ir_version=11), tmp_path / "m.onnx")
    assert written_out(tmp_path / "m.onnx") is None
