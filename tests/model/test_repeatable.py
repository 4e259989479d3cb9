"""Random operators and training mode: refused by node, wherever they stand; not where they do nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from engineworks.errors import ModelError
from engineworks.model.fold.fold import fold_model
from engineworks.model.fold.repeatable import check_repeatable
from engineworks.model.fold.report import FoldReport
from engineworks.tensors import TensorSpec

node = helper.make_node
FEED = {"x": np.random.default_rng(0).normal(size=(2, 4)).astype(np.float32)}
RATIO, ZERO = (numpy_helper.from_array(np.array(v, np.float32), n) for v, n in ((0.5, "ratio"), (0.0, "zero")))
ON, OFF = (numpy_helper.from_array(np.array(v), n) for v, n in ((True, "on"), (False, "off")))
STATISTICS = [numpy_helper.from_array(np.ones(4, np.float32), n) for n in ("scale", "bias", "mean", "var")]


def value(name: str, *shape: Any) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def model_of(nodes: list[onnx.NodeProto], *, opset: int = 17, functions: Any = ()) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes, "g", [value("x", "n", 4)], [value("y", "n", 4)], [RATIO, ZERO, ON, OFF, *STATISTICS]
    )
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("own", 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=9, functions=functions)


def nested(inner: onnx.NodeProto, condition: str = "c") -> list[onnx.NodeProto]:
    """`inner` in a branch within the body of a Loop."""
    out = helper.make_tensor_value_info("o", TensorProto.FLOAT, None)
    branches = {
        "then_branch": helper.make_graph([inner], "then", [], [out]),
        "else_branch": helper.make_graph([node("Identity", ["s"], ["o"])], "else", [], [out]),
    }
    body = helper.make_graph(
        [node("If", [condition], ["t"], **branches), node("Identity", ["c"], ["c2"])], "body",
        [helper.make_tensor_value_info("i", TensorProto.INT64, []), helper.make_tensor_value_info("c", TensorProto.BOOL, []),
         value("s", "n", 4)],
        [helper.make_tensor_value_info("c2", TensorProto.BOOL, []), helper.make_tensor_value_info("t", TensorProto.FLOAT, None)],
    )  # fmt: skip
    once = numpy_helper.from_array(np.array(1, np.int64))
    return [node("Constant", [], ["once"], value=once), node("Loop", ["once", "", "x"], ["y"], body=body)]


def in_function(*body: onnx.NodeProto) -> onnx.ModelProto:
    function = helper.make_function("own", "Layer", ["a"], ["b"], list(body), [helper.make_opsetid("", 17)])
    return model_of([node("Layer", ["x"], ["y"], domain="own", name="call")], functions=[function])


YES = node("Constant", [], ["yes"], value=numpy_helper.from_array(np.array(True)))
HALF = node("Constant", [], ["half"], value=numpy_helper.from_array(np.array(0.5, np.float32)))


@pytest.mark.parametrize(
    ("model", "named"),
    [
        (model_of([node("Dropout", ["x", "ratio", "on"], ["y"], name="d")]), "'Dropout' at node 'd'"),
        (model_of([node("Dropout", ["x", "", "on"], ["y"], name="d")]), "'Dropout' at node 'd'"),
        (model_of([YES, node("Identity", ["yes"], ["t"]), node("Dropout", ["x", "ratio", "t"], ["y"], name="d")]), "'d'"),
        (model_of(nested(node("Dropout", ["s", "ratio", "on"], ["o"], name="deep"))), "'Dropout' at node 'deep'"),
        (in_function(YES, HALF, node("Dropout", ["a", "half", "yes"], ["b"], name="own")), "'Dropout' at node '"),
        (model_of([node("Dropout", ["x"], ["y"], name="old", is_test=0)], opset=6), "'Dropout' at node 'old'"),
        (
            model_of([node("BatchNormalization", ["x", "scale", "bias", "mean", "var"], ["y", "m", "v"], name="bn",
                           training_mode=1)]), "'BatchNormalization' at node 'bn'",
        ),
        (
            model_of([node("BatchNormalization", ["x", "scale", "bias", "mean", "var"], ["y", "m", "v", "a", "b"],
                           name="bn")], opset=13), "'BatchNormalization' at node 'bn'",
        ),
    ],
)  # fmt: skip
def test_training_mode_is_refused(model: onnx.ModelProto, named: str) -> None:
    with pytest.raises(ModelError) as caught:
        check_repeatable(model, "m.onnx")
    assert caught.value.message.startswith("m.onnx: the model is in training mode: ")
    assert named in caught.value.message
    assert "model.eval()" in caught.value.hint


@pytest.mark.parametrize(
    "nodes",
    [
        [node("RandomNormal", [], ["r"], shape=[4], name="noise"), node("Add", ["x", "r"], ["y"])],
        [node("RandomUniform", [], ["r"], shape=[4], seed=1.0, name="noise"), node("Add", ["x", "r"], ["y"])],
        [node("RandomUniformLike", ["x"], ["y"], name="noise")],
        [node("Bernoulli", ["x"], ["y"], name="noise")],
        [node("Multinomial", ["x"], ["m"], sample_size=4, name="noise"), node("Cast", ["m"], ["y"], to=1)],
        nested(node("RandomNormalLike", ["s"], ["o"], name="noise")),
    ],
)
def test_random_numbers_are_refused(nodes: list[onnx.NodeProto]) -> None:
    with pytest.raises(ModelError, match=r"random numbers are drawn by '[A-Za-z]+' at node 'noise': no two runs"):
        check_repeatable(model_of(nodes), "m.onnx")


def folded(tmp_path: Path, model: onnx.ModelProto) -> FoldReport:
    onnx.save(model, str(tmp_path / "model.onnx"))
    spec = TensorSpec("x", "float32", ("n", 4))
    outputs = {"y": ("n", 4)}
    return fold_model(
        tmp_path / "model.onnx", tmp_path / "out.onnx", inputs=[spec], outputs=outputs, minimum_opset=17, feeds=[FEED]
    )


@pytest.mark.parametrize(
    "nodes",
    [
        [node("Dropout", ["x", "ratio", "off"], ["y"])],
        [node("Dropout", ["x", "ratio"], ["y"])],
        [node("Dropout", ["x", "zero", "on"], ["y"])],
        [node("RandomNormalLike", ["x"], ["nobody"]), node("Relu", ["x"], ["y"])],
        [node("BatchNormalization", ["x", "scale", "bias", "mean", "var"], ["y"])],
        nested(node("RandomNormalLike", ["s"], ["o"]), condition="off"),
    ],
    ids=["off", "without", "ratio 0", "unused", "inference", "branch never taken"],
)
def test_what_changes_nothing_is_folded(tmp_path: Path, nodes: list[onnx.NodeProto]) -> None:
    assert folded(tmp_path, model_of(nodes)).max_abs["y"] == 0.0


def test_training_mode_that_only_a_run_shows_is_told(tmp_path: Path) -> None:
    nodes = [node("Not", ["off"], ["t"]), node("Dropout", ["x", "ratio", "t"], ["y"])]
    with pytest.raises(ModelError, match=r"another output 'y' each time it runs on the same sample.*evaluation mode"):
        folded(tmp_path, model_of(nodes))


def test_outputs_of_length_0_are_proved_like_others(tmp_path: Path) -> None:
    """A detector that finds nothing."""
    kept = [
        node("NonZero", ["x"], ["at"]),
        node("Transpose", ["at"], ["turned"]),
        node("GatherND", ["x", "turned"], ["y"]),
    ]
    graph = helper.make_graph(kept, "g", [value("x", "n", 4)], [value("y", "k")])
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), str(tmp_path / "m.onnx")
    )
    report = fold_model(
        tmp_path / "m.onnx", tmp_path / "out.onnx", inputs=[TensorSpec("x", "float32", ("n", 4))],
        outputs={"y": ("k",)}, minimum_opset=17, feeds=[{"x": np.zeros((2, 4), np.float32)}, FEED],
    )  # fmt: skip
    assert report.max_abs == {"y": 0.0}
