"""Models in double, in part or as a whole: lowered as float32 models are, right to the last integer."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from engineworks.model.lower.double import double_to_float, holds_double
from engineworks.model.lower.half.graph import infer_types, split_model
from engineworks.model.lower.half.half import lower_half

FLOAT, DOUBLE, HALF, INT64, BOOL = (
    TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.INT64, TensorProto.BOOL,
)  # fmt: skip
node, value = helper.make_node, helper.make_tensor_value_info
RNG = np.random.default_rng(9)
WEIGHT = RNG.normal(size=(6, 5))


def model(
    nodes: list[onnx.NodeProto],
    inputs: dict[str, int],
    outputs: dict[str, int],
    weights: dict[str, Any],
    width: int = 6,
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes, "g", [value(n, t, ["n", width]) for n, t in inputs.items()],
        [value(n, t, ["n"] if n == "best" else ["n", "m"]) for n, t in outputs.items()],
        [numpy_helper.from_array(np.asarray(v), n) for n, v in weights.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def ran(made: onnx.ModelProto, feeds: dict[str, NDArray[Any]]) -> list[NDArray[Any]]:
    onnx.checker.check_model(made, full_check=True)
    options = onnxruntime.SessionOptions()  # ONNX Runtime's fusion of Mul into MatMul breaks on 1e300
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    found: list[NDArray[Any]] = onnxruntime.InferenceSession(made.SerializeToString(), options).run(None, feeds)
    return found


def types_of(made: onnx.ModelProto) -> dict[str, int]:
    """Node → element type of what it makes."""
    types = infer_types(*split_model(made))
    return {n.name: types[n.output[0]] for n in made.graph.node if n.op_type != "Cast"}


def classifier() -> onnx.ModelProto:
    """All in double, with outputs of three types."""
    nodes = [
        node("MatMul", ["x", "w"], ["y"], name="fc"),
        node("Greater", ["y", "zero"], ["positive"], name="positive"),
        node("ArgMax", ["y"], ["best"], name="best", axis=1, keepdims=0),
    ]
    return model(nodes, {"x": DOUBLE}, {"y": DOUBLE, "positive": BOOL, "best": INT64}, {"w": WEIGHT, "zero": 0.0})


def feeds(count: int = 4, dtype: Any = np.float64) -> list[dict[str, NDArray[Any]]]:
    return [{"x": np.random.default_rng(seed).normal(size=(8, 6)).astype(dtype)} for seed in range(count)]


def test_double_becomes_float32_and_inputs_and_outputs_keep_their_type() -> None:
    made, kept = double_to_float(classifier())
    assert not kept
    assert types_of(made)["fc"] == FLOAT
    assert [t.data_type for t in made.graph.initializer] == [FLOAT, FLOAT]
    sample = feeds()[0]
    expected, got = ran(classifier(), sample), ran(made, sample)
    assert [g.dtype for g in got] == [e.dtype for e in expected] == [np.float64, np.bool_, np.int64]
    np.testing.assert_allclose(got[0], expected[0], rtol=1e-5, atol=1e-6)
    assert [(g == e).all() for g, e in zip(got[1:], expected[1:], strict=True)] == [True, True]


@pytest.mark.parametrize(("dtype", "elem_type"), [("float16", HALF), ("bfloat16", TensorProto.BFLOAT16)])
def test_half_precision_of_a_model_in_double_is_half(dtype: Any, elem_type: int) -> None:
    single, _ = double_to_float(classifier())
    made, report = lower_half(single, dtype, feeds(), source=classifier())
    assert types_of(made)["fc"] == elem_type
    assert "fc" not in report.kept
    assert [v.type.tensor_type.elem_type for v in (*made.graph.input, made.graph.output[0])] == [DOUBLE, DOUBLE]
    assert report.outputs[0].sqnr_db > (60 if dtype == "float16" else 40)


def test_the_proof_is_against_the_model_in_double() -> None:
    other = classifier()
    other.graph.initializer[0].CopyFrom(numpy_helper.from_array(-WEIGHT, "w"))
    single, _ = double_to_float(classifier())
    with pytest.raises(Exception, match=r"float16: output '\w+' "):
        lower_half(single, "float16", feeds(), source=other, autocast=False)


def test_a_part_in_double_becomes_float32_with_its_casts_constants_and_fillings() -> None:
    nodes = [
        node("Cast", ["x"], ["wide"], name="up", to=DOUBLE),
        node("Constant", [], ["half"], name="c", value=numpy_helper.from_array(np.array(0.5))),
        node("Mul", ["wide", "half"], ["m"], name="mul"),
        node("Shape", ["m"], ["s"], name="shape"),
        node("ConstantOfShape", ["s"], ["ones"], name="fill", value=numpy_helper.from_array(np.array([1.0]))),
        node("Add", ["m", "ones"], ["a"], name="add"),
        node("EyeLike", ["a"], ["e"], name="eye", dtype=DOUBLE),
        node("Add", ["a", "e"], ["b"], name="last"),
        node("Cast", ["b"], ["y"], name="down", to=FLOAT),
    ]
    source = model(nodes, {"x": FLOAT}, {"y": FLOAT}, {})
    made, kept = double_to_float(source)
    assert not kept
    assert DOUBLE not in types_of(made).values()
    sample = feeds(dtype=np.float32)[0]
    np.testing.assert_allclose(ran(made, sample)[0], ran(source, sample)[0], rtol=1e-6)
    assert types_of(lower_half(made, "float16", feeds(dtype=np.float32), source=source)[0])["mul"] == HALF


def test_what_comes_from_integers_alone_stays_double_and_exact() -> None:
    nodes = [
        node("Cast", ["x"], ["ticks"], name="up", to=DOUBLE),
        node("Mul", ["ticks", "third"], ["m"], name="mul"),
        node("Floor", ["m"], ["f"], name="floor"),
        node("Cast", ["f"], ["y"], name="down", to=INT64),
    ]
    source = model(nodes, {"x": INT64}, {"y": INT64}, {"third": 1 / 3})
    made, kept = double_to_float(source)
    assert {"mul", "floor"} <= kept.keys()
    sample = {"x": np.arange(1_700_000_000_000, 1_700_000_000_012).reshape(2, 6)}
    assert (ran(made, sample)[0] == ran(source, sample)[0]).all()


@pytest.mark.parametrize("constant", [1e300, 1e-300])
def test_a_constant_that_float32_does_not_hold_keeps_its_node_in_double(constant: float) -> None:
    nodes = [
        node("Mul", ["x", "c"], ["m"], name="there"),
        node("Div", ["m", "c"], ["back"], name="back"),
        node("MatMul", ["back", "w"], ["y"], name="fc"),
    ]
    source = model(nodes, {"x": DOUBLE}, {"y": DOUBLE}, {"c": constant, "w": WEIGHT})
    made, kept = double_to_float(source)
    assert {"there", "back"} == kept.keys()
    assert types_of(made)["fc"] == FLOAT
    sample = feeds()[0]
    np.testing.assert_allclose(ran(made, sample)[0], ran(source, sample)[0], rtol=1e-5, atol=1e-6)


def test_a_mask_of_the_lowest_double_still_masks() -> None:
    nodes = [
        node("Where", ["seen", "x", "lowest"], ["masked"], name="mask"),
        node("Softmax", ["masked"], ["p"], name="softmax", axis=-1),
        node("MatMul", ["p", "w"], ["y"], name="fc"),
    ]
    weights = {"lowest": np.finfo(np.float64).min, "w": WEIGHT}
    source = model(nodes, {"x": DOUBLE, "seen": BOOL}, {"y": DOUBLE}, weights)
    made, kept = double_to_float(source)
    assert not kept
    samples = [{**s, "seen": np.arange(48).reshape(8, 6) % 3 > 0} for s in feeds()]
    assert lower_half(made, "float16", samples, source=source, autocast=False)[1].outputs[0].sqnr_db > 50


def test_a_branch_in_double_stays_and_what_is_around_it_does_not() -> None:
    branches = {
        f"{name}_branch": helper.make_graph([node(op, ["h", "h"], [f"{op}_out"])], op, [], [value(f"{op}_out", DOUBLE, None)])
        for name, op in (("then", "Add"), ("else", "Mul"))
    }  # fmt: skip
    nodes = [
        node("MatMul", ["x", "w"], ["h"], name="before"),
        node("If", ["flag"], ["c"], name="choice", **branches),
        node("MatMul", ["c", "v"], ["y"], name="after"),
    ]
    weights = {"w": WEIGHT, "v": RNG.normal(size=(5, 4)), "flag": np.array(True)}
    source = model(nodes, {"x": DOUBLE}, {"y": DOUBLE}, weights)
    made, kept = double_to_float(source)
    assert kept.keys() == {"choice"}
    assert types_of(made) == {"before": FLOAT, "choice": DOUBLE, "after": FLOAT}
    sample = feeds()[0]
    np.testing.assert_allclose(ran(made, sample)[0], ran(source, sample)[0], rtol=1e-5, atol=1e-5)


def test_a_model_without_double_is_given_back_as_it_is() -> None:
    source = model([node("MatMul", ["x", "w"], ["y"])], {"x": FLOAT}, {"y": FLOAT}, {"w": WEIGHT.astype(np.float32)})
    assert not holds_double(source)
    assert double_to_float(source)[0] is source
