"""fp8, int8 and int4 weights, and mixtures of them: what is stored, where, and that the graph computes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from exact_sessions import open_exact
from half_conversion import to_half
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from engineworks.errors import LoweringError
from engineworks.model.calibrate.ranges import Range, Ranges
from engineworks.model.lower.formats import FORMATS, block_size, quantize_weight_fp8, quantize_weight_int4
from engineworks.model.lower.quantize import quantize, raise_opset_for

FLOAT = TensorProto.FLOAT
ATOL_E4M3 = 2.0**-4
"""Half a step of e4m3, relative: three bits after the point."""


def weights(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(0, 0.3, shape).astype(np.float32)


def two_products(opset: int = 17, inner: int = 128) -> onnx.ModelProto:
    """y = relu(x @ w1) @ w2.T: a MatMul 'first' and a Gemm 'second' with transB."""
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["a"], name="first"),
        helper.make_node("Relu", ["a"], ["r"], name="relu"),
        helper.make_node("Gemm", ["r", "w2", "c"], ["y"], name="second", transB=1),
    ]
    stored = {"w1": weights(64, inner), "w2": weights(10, inner, seed=1), "c": weights(10, seed=2)}
    graph = helper.make_graph(
        nodes,
        "two",
        [helper.make_tensor_value_info("x", FLOAT, ["n", 64])],
        [helper.make_tensor_value_info("y", FLOAT, ["n", 10])],
        [numpy_helper.from_array(value, name) for name, value in stored.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


RANGES = Ranges("minmax", 1, {"x": Range(4, -4, 4, 0, 1), "r": Range(25, 0, 25, 0, 1)})
X = np.random.default_rng(3).uniform(-4, 4, (16, 64)).astype(np.float32)


def lower(globs: Mapping[str, Sequence[str]], model: onnx.ModelProto | None = None, **options: Any) -> Any:
    model = raise_opset_for(model or two_products(), globs)
    found = quantize(model, RANGES, globs=globs, **options)
    onnx.checker.check_model(found.model, full_check=True)
    return found


def run(model: onnx.ModelProto) -> NDArray[np.float32]:
    session = open_exact(model)
    found: NDArray[np.float32] = session.run(None, {"x": X})[0]
    return found


def cosine(a: NDArray[Any], b: NDArray[Any]) -> float:
    return float((a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b))


def initializer(model: onnx.ModelProto, name: str) -> onnx.TensorProto:
    return next(t for t in model.graph.initializer if t.name == name)


@pytest.mark.parametrize(("name", "least"), [("int8_weights", 0.9999), ("int4_weights", 0.985)])
def test_weights_only_leave_activations_alone_and_run_on_the_cpu(name: str, least: float) -> None:
    found = lower({name: ["*"]})
    assert found.activations == ()
    assert found.formats == {"first": name, "second": name}
    assert "QuantizeLinear" not in {n.op_type for n in found.model.graph.node}
    assert cosine(run(two_products()), run(found.model)) >= least


def test_weights_only_need_no_ranges() -> None:
    assert quantize(two_products(), None, globs={"int8_weights": ["*"]}).weights == ("w1", "w2")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", list(FORMATS))
def test_every_format_is_valid_with_half_precision_around_it(name: str, dtype: Any) -> None:
    halved = to_half(lower({name: ["*"]}).model, dtype)
    onnx.checker.check_model(halved.model, full_check=True)
    assert {"first", "second"} <= set(halved.converted_nodes)


def test_fp8_is_what_the_standard_computes() -> None:
    """ONNX Runtime has no e4m3 for the CPU, so ONNX's own reference runs the graph; numpy says what must come out."""
    from onnx.reference import ReferenceEvaluator

    found = lower({"fp8": ["*"]})
    assert initializer(found.model, "w1_quantized").data_type == TensorProto.FLOAT8E4M3FN
    (computed,) = ReferenceEvaluator(found.model).run(None, {"x": X})

    def rounded(values: NDArray[Any], scale: float) -> NDArray[np.float32]:
        through = np.clip(values / np.float32(scale), -448, 448).astype(ml_dtypes.float8_e4m3fn)
        back: NDArray[np.float32] = through.astype(np.float32) * np.float32(scale)
        return back

    def stored(name: str) -> NDArray[np.float32]:
        return rounded(numpy_helper.to_array(initializer(two_products(), name)), scales[f"{name}_scale"])

    scales = {n: float(numpy_helper.to_array(initializer(found.model, n))) for n in ("x_scale", "r_scale")}
    scales |= {n: float(numpy_helper.to_array(initializer(found.model, n))) for n in ("w1_scale", "w2_scale")}
    assert scales["x_scale"] == pytest.approx(4 / 448)
    inner = np.maximum(rounded(X, scales["x_scale"]) @ stored("w1"), 0)
    bias = numpy_helper.to_array(initializer(two_products(), "c"))
    expected = rounded(inner, scales["r_scale"]) @ stored("w2").T + bias
    np.testing.assert_allclose(computed, expected, rtol=0.02, atol=0.1)
    assert cosine(run(two_products()), computed) > 0.998


def test_fp8_covers_all_that_was_seen_whatever_was_cut_off_for_int8() -> None:
    seen = Range(amax=2, minimum=-3, maximum=8, saturated=0.1, values=100)
    assert FORMATS["fp8"].scale_of(seen) == pytest.approx(8 / 448)
    assert FORMATS["int8"].scale_of(seen) == pytest.approx(2 / 127)
    assert FORMATS["fp8"].scale_of(Range(0, 0, 0, 0, 1)) == 1


def test_fp8_weights_lose_at_most_half_a_step() -> None:
    w = weights(40, 30)
    values, scale = quantize_weight_fp8(w, "w")
    back = values.astype(np.float32) * scale
    large = np.abs(w) > float(scale) * 2**-6  # smaller ones are subnormal
    assert (np.abs(back - w)[large] <= ATOL_E4M3 * np.abs(w)[large]).all()


def test_int4_has_a_scale_for_each_block_along_the_summed_axis() -> None:
    found = lower({"int4_weights": ["*"]}).model
    shapes = {n: tuple(initializer(found, n).dims) for n in ("w1_quantized", "w1_scale", "w2_scale")}
    assert shapes == {"w1_quantized": (64, 128), "w1_scale": (1, 128), "w2_scale": (10, 1)}
    nodes = {n.output[0]: {a.name: a.i for a in n.attribute} for n in found.graph.node if n.op_type.startswith("Deq")}
    assert nodes == {"w1_dequantized": {"axis": 0, "block_size": 64}, "w2_dequantized": {"axis": 1, "block_size": 128}}
    assert len(initializer(found, "w1_quantized").raw_data) == 64 * 128 // 2


def test_w4a8_has_small_blocks() -> None:
    found = lower({"w4a8": ["*"]})
    assert set(found.formats.values()) == {"w4a8"}
    assert {tuple(initializer(found.model, n).dims) for n in ("w1_scale", "w2_scale")} == {(2, 128), (10, 4)}


def test_int4_is_packed_as_onnx_reads_it() -> None:
    values = np.array([[-8, 7, 1], [-1, 0, 3]], np.int8)
    tensor = FORMATS["int4_weights"].tensor(values, "w")
    assert numpy_helper.to_array(tensor).astype(np.int8).tolist() == values.tolist()


def test_int4_cuts_off_a_single_outlier_where_that_costs_less() -> None:
    """Blocks with plain rounding to max / 7 are the peer: never worse, and better where one weight stands out."""
    w = weights(128, 64)
    w[0] *= 4
    values, scale = quantize_weight_int4(w, 0, 128, "w")
    plain_scale = np.abs(w).max(axis=0) / 7
    plain = np.clip(np.rint(w / plain_scale), -8, 7) * plain_scale
    ours = values * scale
    assert values.min() >= -8
    assert values.max() <= 7
    error, plain_error = np.square(ours - w).sum(axis=0), np.square(plain - w).sum(axis=0)
    assert (error <= plain_error * 1.0001).all()
    assert error.sum() < 0.95 * plain_error.sum()


def test_int4_of_zeros_divides_by_no_zero() -> None:
    values, scale = quantize_weight_int4(np.zeros((64, 2), np.float32), 0, 32, "w")
    assert not values.any()
    assert (scale > 0).all()


@pytest.mark.parametrize(("length", "size"), [(256, 128), (192, 64), (96, 32), (100, None)])
def test_the_largest_block_that_fits_is_taken(length: int, size: int | None) -> None:
    assert block_size(length) == size


def test_a_weight_of_no_whole_blocks_stays_and_is_named() -> None:
    found = lower({"int4_weights": ["*"]}, two_products(inner=100))
    assert found.formats == {"first": "int4_weights"}
    assert found.kept_nodes[0].name == "second"
    assert found.kept_nodes[0].reason == "its weight 'w2' has 100 rows, no multiple of 32"


@pytest.mark.parametrize(("name", "opset"), [("int8", 17), ("fp8", 19), ("int4_weights", 21)])
def test_the_opset_is_raised_only_where_a_format_needs_it(name: str, opset: int) -> None:
    assert raise_opset_for(two_products(), {name: ["*"]}).opset_import[0].version == opset
    assert raise_opset_for(two_products(22), {name: ["*"]}).opset_import[0].version == 22


def test_raising_the_opset_keeps_the_names_that_globs_are_about() -> None:
    model = two_products()
    model.graph.node[0].name = ""
    assert lower({"fp8": ["a"]}, model).formats == {"a": "fp8"}


# Mixtures


def test_a_mixture_gives_each_node_its_own_format() -> None:
    found = lower({"int8": ["first"], "int4_weights": ["sec*"]})
    assert found.formats == {"first": "int8", "second": "int4_weights"}
    assert found.activations == ("x",)
    assert cosine(run(two_products()), run(found.model)) > 0.985


def test_what_no_glob_names_stays() -> None:
    found = lower({"int8": ["op:Gemm"]})
    assert found.formats == {"second": "int8"}
    assert [(k.name, k.reason) for k in found.kept_nodes] == [("first", "nothing names it")]


def test_one_tensor_may_be_read_in_two_formats() -> None:
    model = two_products()
    model.graph.node.append(helper.make_node("MatMul", ["x", "w1"], ["b"], name="third"))
    model.graph.output.append(helper.make_tensor_value_info("b", FLOAT, ["n", 128]))
    found = lower({"int8": ["first"], "fp8": ["third"]}, model)
    scales = [t.name for t in found.model.graph.initializer if t.name.startswith("x_scale")]
    assert scales == ["x_scale", "x_scale_2"]


def test_a_node_of_two_formats_is_refused_with_both_globs() -> None:
    with pytest.raises(LoweringError, match=r"node 'first' is to be int8 by 'f\*' and fp8 by '\*st'"):
        lower({"int8": ["f*"], "fp8": ["*st"]})


def test_a_glob_that_matches_nothing_suggests_near_names() -> None:
    with pytest.raises(LoweringError, match=r"int8: 'frist' matches no node of the model; did you mean 'first'"):
        lower({"int8": ["frist"]})


def test_keep_is_for_activations_and_fp32_for_all() -> None:
    assert lower({"int8": ["*"]}, keep=["first"]).formats == {"second": "int8"}
    assert lower({"int8_weights": ["*"]}, keep=["first"]).formats == {"first": "int8_weights", "second": "int8_weights"}
    assert lower({"int8_weights": ["*"]}, fp32=["first"]).formats == {"second": "int8_weights"}
