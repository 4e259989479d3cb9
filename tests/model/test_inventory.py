"""The inventory of a model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from engineworks.model.fold.inventory import inventory
from engineworks.model.onnx_files import load_model
from engineworks.tensors import TensorSpec


def mixed_model() -> onnx.ModelProto:
    """Weights of four dtypes, one of them in an attribute and one in a branch; an operator of ONNX Runtime."""
    branches = [
        helper.make_graph(
            [helper.make_node("Add", ["g", name], [f"{name}_out"])],
            name,
            [],
            [helper.make_tensor_value_info(f"{name}_out", TensorProto.FLOAT, None)],
            [numpy_helper.from_array(np.ones(3, np.float32), name)],
        )
        for name in ("up", "down")
    ]
    packed = helper.make_tensor("packed", TensorProto.INT4, [5], [1, 2, 3, 4, 5])
    graph = helper.make_graph(
        [
            helper.make_node("Constant", [], ["half"], value=numpy_helper.from_array(np.float16(0.5))),
            helper.make_node("Gelu", ["x"], ["g"], domain="com.microsoft"),
            helper.make_node("If", ["flag"], ["y"], then_branch=branches[0], else_branch=branches[1]),
        ],
        "mixed",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3]),
            helper.make_tensor_value_info("flag", TensorProto.BOOL, []),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3])],
        [packed, numpy_helper.from_array(np.array([1, -1]), "shape")],
    )
    domains = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=domains, ir_version=10)


def test_operators_are_counted_with_those_of_branches_and_by_domain() -> None:
    found = inventory(mixed_model())
    assert found.operators == {"Add": 2, "Constant": 1, "If": 1, "com.microsoft.Gelu": 1}
    assert next(iter(found.operators)) == "Add"
    assert found.nodes == 5


def test_weights_are_counted_wherever_they_are_stored() -> None:
    found = inventory(mixed_model())
    assert found.bytes_by_dtype == {"float16": 2, "float32": 24, "int4": 3, "int64": 16}
    assert found.weight_bytes == 45
    assert found.parameters == 1 + 6 + 5  # the shape is none


def test_interface_and_versions_are_told() -> None:
    found = inventory(mixed_model())
    assert (found.opset, found.ir_version) == (21, 10)
    assert found.inputs == (TensorSpec("x", "float32", ("batch", 3)), TensorSpec("flag", "bool", ()))
    assert found.outputs == (TensorSpec("y", "float32", ("batch", 3)),)


def test_the_json_form_is_json() -> None:
    value = inventory(mixed_model()).to_json()
    assert json.loads(json.dumps(value)) == value
    assert value["nodes"] == 5


def test_sizes_are_known_without_loading_the_weights(tmp_path: Path) -> None:
    model = mixed_model()
    model.graph.initializer.append(numpy_helper.from_array(np.zeros((64, 64), np.float32), "w"))
    onnx.save(model, str(tmp_path / "m.onnx"), save_as_external_data=True, location="w.bin")
    (tmp_path / "w.bin").unlink()
    found = inventory(load_model(tmp_path / "m.onnx", weights=False))
    assert found.bytes_by_dtype["float32"] == 24 + 64 * 64 * 4
