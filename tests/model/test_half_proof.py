"""`lower_half`: overflow is seen and avoided, the proof sees what ONNX Runtime's fp16 hides, failures are told."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from exact_sessions import open_exact
from half_conversion import clamped, to_half
from onnx import TensorProto, helper, numpy_helper

from engineworks.errors import LoweringError, SamplesError
from engineworks.model.lower.half.graph import FORMATS
from engineworks.model.lower.half.half import lower_half
from engineworks.model.lower.half.prove import cosine, prove, reference_outputs
from engineworks.model.lower.half.run import Bench
from engineworks.model.lower.report import HalfLimits

F32 = TensorProto.FLOAT
DTYPES = ["float16", "bfloat16"]


def node(op: str, inputs: str, outputs: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op, inputs.split(), outputs.split(), name=f"n_{outputs.split()[0]}", **attributes)


def model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, Any],
    outputs: Mapping[str, Any],
    weights: Mapping[str, Any] | None = None,
    opset: int = 17,
) -> onnx.ModelProto:
    def values(specs: Mapping[str, Any]) -> list[onnx.ValueInfoProto]:
        typed = {n: s if isinstance(s, tuple) else (F32, s) for n, s in specs.items()}
        return [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in typed.items()]

    stored = [numpy_helper.from_array(np.asarray(v), name) for name, v in (weights or {}).items()]
    graph = helper.make_graph(list(nodes), "g", values(inputs), values(outputs), initializer=stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def floats(*shape: int, scale: float = 1.0, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).normal(size=shape) * scale).astype(np.float32)


def samples(*shape: int, scale: float = 1.0, count: int = 3) -> list[dict[str, np.ndarray]]:
    return [{"x": floats(*shape, scale=scale, seed=seed)} for seed in range(count)]


def outputs_of(made: onnx.ModelProto, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    session = open_exact(made)
    return list(session.run(None, dict(feeds)))


def two_layers(opset: int = 17) -> onnx.ModelProto:
    nodes = [node("MatMul", "x w", "h"), node("Gelu" if opset >= 20 else "Tanh", "h", "t"), node("MatMul", "t w", "y")]
    return model(nodes, {"x": ["n", 16]}, {"y": ["n", 16]}, {"w": floats(16, 16, scale=0.2)}, opset)


def squares() -> onnx.ModelProto:
    """x @ w, squared, its root, @ w: the square overflows fp16 where |x @ w| > 256."""
    nodes = [node("MatMul", "x w", "h"), node("Mul", "h h", "s"), node("Sqrt", "s", "r"), node("MatMul", "r w", "y")]
    return model(nodes, {"x": [4, 8]}, {"y": [4, 8]}, {"w": floats(8, 8)})


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("opset", [13, 17, 21])
def test_a_plain_model_passes_with_its_figures(dtype: Any, opset: int) -> None:
    made, report = lower_half(two_layers(opset), dtype, iter(samples(5, 16)))
    (proof,) = report.outputs
    assert (report.converter, report.rounds, report.samples) == ("engineworks", 0, 3)
    assert (report.nodes, report.converted, report.casts, report.kept) == (3, 3, 2, {})
    assert proof.finite
    assert proof.sqnr_db > (50 if dtype == "float16" else 30)
    assert proof.cosine > 0.999
    assert 0 < proof.max_abs_error < 0.1
    assert json.loads(json.dumps(report.to_json()))["outputs"][0]["name"] == "y"
    onnx.checker.check_model(made, full_check=True)


def test_an_activation_that_overflows_fp16_stays_fp32() -> None:
    feeds = samples(4, 8, scale=300.0)
    made, report = lower_half(squares(), "float16", feeds)
    assert "'s' reaches" in report.kept["n_s"]
    assert {"n_s", "n_r"} <= set(report.kept)
    assert report.rounds == 0
    assert report.converted == 2
    reference, got = outputs_of(squares(), feeds[0])[0], outputs_of(made, feeds[0])[0]
    assert cosine(reference.ravel().astype(float), got.ravel().astype(float)) > 0.9999


def test_headroom_decides_how_near_to_the_limit_a_node_may_come() -> None:
    feeds = samples(4, 8, scale=20.0)
    limits = {headroom: HalfLimits(min_cosine=0.99, min_sqnr_db=20, headroom=headroom) for headroom in (1.0, 8.0)}
    assert "n_s" not in lower_half(squares(), "float16", feeds, limits=limits[1.0])[1].kept
    assert "n_s" in lower_half(squares(), "float16", feeds, limits=limits[8.0])[1].kept


def test_an_activation_near_the_smallest_fp16_number_stays_fp32() -> None:
    nodes = [
        node("MatMul", "x w", "h"),
        node("Mul", "h small", "s"),
        node("Div", "s small", "d"),
        node("MatMul", "d w", "y"),
    ]
    source = model(nodes, {"x": [4, 8]}, {"y": [4, 8]}, {"w": floats(8, 8), "small": np.float32(1e-7)})
    _, report = lower_half(source, "float16", samples(4, 8))
    assert "stays below" in report.kept["n_s"]
    assert set(report.kept) == {"n_s", "n_d"}
    assert report.rounds == 0


def test_bfloat16_has_the_range_of_fp32_and_keeps_nothing() -> None:
    assert not lower_half(squares(), "bfloat16", samples(4, 8, scale=300.0))[1].kept


def test_the_emulation_sees_an_overflow_that_onnxruntime_hides(tmp_path: Path) -> None:
    feeds = samples(4, 8, scale=300.0)
    halved = to_half(squares(), "float16").model
    assert np.isfinite(outputs_of(halved, feeds[0])[0]).all()  # ONNX Runtime computes the square in fp32
    bench = Bench(tmp_path)
    (proof,) = prove(bench, halved, FORMATS["float16"], feeds, reference_outputs(bench, squares(), feeds))
    assert not proof.finite


def test_the_sum_behind_a_mean_is_counted() -> None:
    nodes = [node("MatMul", "x w", "h"), node("ReduceMean", "h", "m", axes=[1]), node("MatMul", "m v", "y")]
    source = model(nodes, {"x": [4, 8]}, {"y": [4, 1]}, {"w": np.full((8, 4096), 5, np.float32), "v": floats(1, 1)})
    feeds = [{"x": np.ones((4, 8), np.float32)}]
    assert lower_half(source, "float16", feeds)[1].kept["n_m"].startswith("the sum behind mean 'm' reaches 1.638e+05")


def test_a_normalization_of_large_values_stays_fp32() -> None:
    nodes = [node("MatMul", "x w", "h"), node("LayerNormalization", "h g", "n"), node("MatMul", "n w", "y")]
    source = model(nodes, {"x": [4, 8]}, {"y": [4, 8]}, {"w": floats(8, 8), "g": np.ones(8, np.float32)})
    assert "squared reaches" in lower_half(source, "float16", samples(4, 8, scale=200.0))[1].kept["n_n"]
    assert not lower_half(source, "float16", samples(4, 8))[1].kept


def masked(mask: str) -> onnx.ModelProto:
    nodes = [
        node("MatMul", "x w", "h"),
        node("Add", f"h {mask}", "s"),
        node("Softmax", "s", "p", axis=-1),
        node("MatMul", "p w", "y"),
    ]
    return model(nodes, {"x": [2, 8], "mask": [2, 8]}, {"y": [2, 8]}, {"w": floats(8, 8)})


def test_a_mask_of_huge_values_in_the_samples_keeps_its_softmax_in_fp32() -> None:
    mask = np.where(np.arange(8) < 5, 0, -3.4028e38).astype(np.float32)[None].repeat(2, 0)
    _, report = lower_half(masked("mask"), "float16", [{**sample, "mask": mask} for sample in samples(2, 8)])
    assert set(report.kept) == {"n_s", "n_p"}
    assert report.outputs[0].sqnr_db > 50


def computed_mask(ok: np.ndarray) -> tuple[onnx.ModelProto, list[dict[str, np.ndarray]]]:
    """Two masks of half the lowest fp32 number added to the scores, as exporters of causal and padding masks do."""
    nodes = [
        node("MatMul", "x w", "h"),
        node("Cast", "ok", "one", to=F32),
        node("Sub", "ones one", "off"),
        node("Mul", "off lowest", "bias"),
        node("Add", "h bias", "s1"),
        node("Add", "s1 bias", "s2"),
        node("Softmax", "s2", "y", axis=-1),
    ]
    weights = {"w": floats(8, 8), "ones": np.float32(1), "lowest": np.float32(np.finfo(np.float32).min / 2)}
    source = model(nodes, {"x": [2, 8], "ok": (TensorProto.BOOL, [2, 8])}, {"y": [2, 8]}, weights)
    return source, [{**sample, "ok": ok} for sample in samples(2, 8)]


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_computed_mask_is_clamped_and_its_softmax_is_half(dtype: Any) -> None:
    ok = np.array([[True] * 5 + [False] * 3, [False] * 4 + [True] * 4])
    source, feeds = computed_mask(ok)
    _, report = lower_half(source, dtype, feeds)
    assert clamped(report) == ("lowest",)
    assert {"n_s1", "n_s2", "n_y"}.isdisjoint(report.kept)


WHOLE_ROW = np.array([[True] * 5 + [False] * 3, [False] * 8])


def test_where_fp16_would_not_swallow_the_scores_of_a_masked_row_its_softmax_stays_fp32() -> None:
    source, feeds = computed_mask(WHOLE_ROW)
    _, report = lower_half(source, "float16", feeds)
    assert not clamped(report)
    assert {"n_s1", "n_s2", "n_y"} <= set(report.kept)
    assert "n_h" not in report.kept
    assert report.outputs[0].cosine > 0.999


def test_a_row_that_is_masked_as_a_whole_is_no_nan_in_bf16() -> None:
    _, report = lower_half(computed_mask(WHOLE_ROW)[0], "bfloat16", computed_mask(WHOLE_ROW)[1])
    assert clamped(report) == ("lowest",)
    assert report.outputs[0].finite


@pytest.mark.parametrize("dtype", DTYPES)
def test_noise_is_repaired_by_keeping_its_source_and_what_feeds_it(dtype: Any) -> None:
    nodes = [
        node("MatMul", "x w", "h"),
        node("Add", "h shift", "a"),
        node("Sub", "a shift", "b"),
        node("MatMul", "b w", "y"),
    ]
    source = model(nodes, {"x": [4, 16]}, {"y": [4, 16]}, {"w": floats(16, 16), "shift": np.float32(3000)})
    _, report = lower_half(source, dtype, samples(4, 16))
    assert report.rounds >= 1
    assert {"n_a", "n_b"} <= set(report.kept)
    assert "n_y" not in report.kept
    assert report.outputs[0].sqnr_db > 30


def test_an_output_that_can_not_pass_is_named_with_its_figure() -> None:
    limits = HalfLimits(min_cosine=0.9, min_sqnr_db=150, rounds=0)
    with pytest.raises(
        LoweringError, match=r"float16: output 'y' has a signal to noise ratio of \d+\.\d dB \(limit 150"
    ):
        lower_half(two_layers(), "float16", samples(2, 16), limits=limits, autocast=False)


def test_repairs_end_when_every_node_is_kept() -> None:
    limits = HalfLimits(min_cosine=0.9, min_sqnr_db=150)
    made, report = lower_half(two_layers(), "float16", samples(2, 16), limits=limits)
    assert len(report.kept) == report.nodes
    assert not any(n.op_type == "Cast" for n in made.graph.node)


def test_a_model_that_draws_random_numbers_is_told_apart_from_a_noisy_one() -> None:
    nodes = [node("Dropout", "x half yes", "d"), node("MatMul", "d w", "y")]
    weights = {"w": floats(16, 16), "half": np.float32(0.5), "yes": np.array(True)}
    source = model(nodes, {"x": [2, 16]}, {"y": [2, 16]}, weights)
    with pytest.raises(LoweringError, match="another output 'y' each time"):
        lower_half(source, "float16", samples(2, 16), autocast=False)


@pytest.mark.parametrize("dtype", DTYPES)
def test_integer_outputs_are_compared_by_agreement(dtype: Any) -> None:
    nodes = [node("MatMul", "x w", "h"), node("ArgMax", "h", "y", axis=1, keepdims=0)]
    source = model(nodes, {"x": [64, 8]}, {"y": (TensorProto.INT64, [64])}, {"w": np.eye(8, dtype=np.float32)})
    (proof,) = lower_half(source, dtype, samples(64, 8))[1].outputs
    assert not proof.floating
    assert proof.agreement > 0.98


def test_infinities_of_the_model_are_compared_as_such() -> None:
    nodes = [node("MatMul", "x w", "h"), node("Where", "keep h low", "y")]
    weights = {"w": floats(8, 8), "keep": np.arange(8) < 6, "low": np.float32(-np.inf)}
    (proof,) = lower_half(model(nodes, {"x": [2, 8]}, {"y": [2, 8]}, weights), "float16", samples(2, 8))[1].outputs
    assert proof.finite
    assert proof.agreement == 1.0
    assert proof.sqnr_db < 200


def test_empty_tensors_are_no_obstacle() -> None:
    nodes = [node("Concat", "past x", "all", axis=0), node("MatMul", "all w", "y")]
    source = model(nodes, {"past": ["p", 8], "x": ["n", 8]}, {"all": ["a", 8], "y": ["a", 8]}, {"w": floats(8, 8)})
    feeds = [{"past": np.zeros((0, 8), np.float32), **sample} for sample in samples(3, 8)]
    assert lower_half(source, "float16", feeds)[1].outputs[1].sqnr_db > 50


def test_nodes_with_subgraphs_are_proved_too() -> None:
    def branch(name: str, op: str) -> onnx.GraphProto:
        out = helper.make_tensor_value_info(name, F32, [2, 8])
        return helper.make_graph([helper.make_node(op, ["h"], [name])], name, [], [out])

    nodes = [
        node("MatMul", "x w", "h"),
        node("If", "yes", "i", then_branch=branch("t", "Tanh"), else_branch=branch("e", "Relu")),
        node("MatMul", "i w", "y"),
    ]
    source = model(nodes, {"x": [2, 8]}, {"y": [2, 8]}, {"w": floats(8, 8), "yes": np.array(True)})
    assert lower_half(source, "float16", samples(2, 8))[1].outputs[0].sqnr_db > 50


def test_quantized_models_are_proved_with_their_scales_in_half() -> None:
    nodes = [
        node("QuantizeLinear", "x s z", "q"),
        node("DequantizeLinear", "q s z", "d"),
        node("DequantizeLinear", "wq ws", "wd", axis=1),
        node("MatMul", "d wd", "h"),
        node("Relu", "h", "y"),
    ]
    wq = np.random.default_rng(0).integers(-127, 127, (16, 16)).astype(np.int8)
    weights = {"s": np.float32(0.03), "z": np.int8(0), "wq": wq, "ws": np.full(16, 0.01, np.float32)}
    source = model(nodes, {"x": [4, 16]}, {"y": [4, 16]}, weights, opset=19)
    made, report = lower_half(source, "float16", samples(4, 16))
    assert report.outputs[0].sqnr_db > 50
    assert next(t.data_type for t in made.graph.initializer if t.name == "ws") == TensorProto.FLOAT16


def test_without_samples_nothing_is_claimed() -> None:
    with pytest.raises(SamplesError, match="no samples"):
        lower_half(two_layers(), "float16", [])


def test_samples_under_other_names_are_refused() -> None:
    with pytest.raises(SamplesError, match=r"sample 0 holds \['image'\]; the model's inputs are \['x'\]"):
        lower_half(two_layers(), "float16", [{"image": floats(2, 16)}])


def test_only_as_many_samples_as_the_limit_are_taken() -> None:
    feeds = iter(samples(2, 16, count=5))
    limits = HalfLimits(min_cosine=0.99, min_sqnr_db=20, samples=2)
    assert lower_half(two_layers(), "float16", feeds, limits=limits)[1].samples == 2
    assert len(list(feeds)) == 3


def test_a_model_that_gives_only_nan_is_refused() -> None:
    source = model(
        [node("Sqrt", "x", "r"), node("MatMul", "r w", "y")], {"x": [2, 4]}, {"y": [2, 4]}, {"w": floats(4, 4)}
    )
    with pytest.raises(LoweringError, match="nothing but NaN in output 'y' on sample 0"):
        lower_half(source, "float16", [{"x": -np.ones((2, 4), np.float32)}])


@pytest.mark.skipif(find_spec("modelopt") is not None, reason="AutoCast is installed")
def test_autocast_is_asked_for_by_name_where_it_is_missing() -> None:
    with pytest.raises(LoweringError, match="'modelopt' is not installed; pip install"):
        lower_half(two_layers(), "float16", samples(2, 16), autocast=True)


@pytest.mark.torch
@pytest.mark.skipif(find_spec("modelopt") is None, reason="nvidia-modelopt is not installed")
def test_autocast_is_proved_like_our_own() -> None:
    made, report = lower_half(two_layers(), "float16", samples(2, 16), autocast=True)
    assert report.converter == "autocast"
    assert report.outputs[0].sqnr_db > 50
    onnx.checker.check_model(made, full_check=True)
