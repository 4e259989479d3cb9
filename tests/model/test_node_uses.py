"""How a model uses its operators: what the capability table asks."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from engineworks.model.fold.inventory import inventory, node_uses

FLOAT = TensorProto.FLOAT


def model_of(nodes: list[onnx.NodeProto], **constants: np.ndarray) -> onnx.ModelProto:
    values = [numpy_helper.from_array(v, n) for n, v in constants.items()]
    return helper.make_model(
        helper.make_graph(nodes, "g", [], [], values), opset_imports=[helper.make_opsetid("", 21)], ir_version=10
    )


def test_operators_are_named_with_their_nodes_those_of_branches_too() -> None:
    branch = helper.make_graph([helper.make_node("NonZero", ["x"], ["t"], name="inner")], "b", [], [])
    found = node_uses(
        model_of(
            [
                helper.make_node("Relu", ["x"], ["y"], name="one"),
                helper.make_node("Relu", ["y"], ["z"], name="two"),
                helper.make_node("If", ["c"], ["w"], name="if", then_branch=branch, else_branch=branch),
            ]
        )
    )
    assert found == {"If": ("if",), "NonZero": ("inner", "inner"), "Relu": ("one", "two")}


def test_sequence_lengths_are_a_use_of_their_own() -> None:
    with_lengths = helper.make_node("GRU", ["x", "w", "r", "", "n"], ["y"], name="gru", hidden_size=8)
    without = helper.make_node("GRU", ["x", "w", "r", "", "", "h"], ["z"], name="other", hidden_size=8)
    found = node_uses(model_of([with_lengths, without]))
    assert found == {"GRU": ("gru", "other"), "GRU:sequence_lens": ("gru",)}


@pytest.mark.parametrize(
    ("zero", "uses"),
    [
        (np.int8(0), set()),
        (np.int8(3), {"zero_point"}),
        (np.uint8(0), {"unsigned"}),
        (np.uint8(128), {"unsigned", "zero_point"}),
        (np.int32(0), {"int32"}),
        (np.array([0, 1, 0], np.int8), {"zero_point"}),
        (None, {"unsigned"}),  # by the standard
    ],
)
def test_what_is_particular_about_quantization_is_told(zero: np.ndarray | None, uses: set[str]) -> None:
    inputs = ["x", "s", "z"] if zero is not None else ["x", "s"]
    constants = {"s": np.array(0.1, np.float32)} | ({"z": np.asarray(zero)} if zero is not None else {})
    found = node_uses(model_of([helper.make_node("QuantizeLinear", inputs, ["q"], name="q")], **constants))
    assert {use.partition(":")[2] for use in found} == {"", *uses}


def test_the_inventory_has_them_as_json() -> None:
    graph = helper.make_graph(
        [helper.make_node("MaxPool", ["x"], ["y", "i"], name="pool", kernel_shape=[2, 2])], "g",
        [helper.make_tensor_value_info("x", FLOAT, [1, 1, 4, 4])], [helper.make_tensor_value_info("y", FLOAT, None)],
    )  # fmt: skip
    value = inventory(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)).to_json()
    assert value["uses"] == {"MaxPool": ["pool"], "MaxPool:indices": ["pool"]}
