"""Half precision around quantized nodes: proved against the fp32 model, built by TensorRT-RTX."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from exact_sessions import open_exact
from half_conversion import clamped
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from engineworks.errors import BuildError, LoweringError
from engineworks.model.calibrate.collect import collect_ranges
from engineworks.model.calibrate.ranges import Range, Ranges
from engineworks.model.lower.half.half import lower_half
from engineworks.model.lower.half.prove import compare_outputs, reference_outputs
from engineworks.model.lower.half.run import Bench
from engineworks.model.lower.half.unquantized import halve_unquantized
from engineworks.model.lower.quantize import quantize, raise_opset_for, tensors_to_calibrate

RECIPES = Path(__file__).parents[2] / "recipes"
HALF = TensorProto.FLOAT16
FORMATS = ["int8", "fp8", "int8_weights", "int4_weights"]


def digits() -> tuple[onnx.ModelProto, Ranges, list[dict[str, NDArray[Any]]]]:
    path = RECIPES / "models" / "digits_cnn.onnx"
    images = np.load(RECIPES / "data" / "digits_calib.npz")["x"][:64]
    batches = [{"image": images[at : at + 8]} for at in range(0, 64, 8)]
    model = onnx.load(str(path))
    return model, collect_ranges(path, lambda: iter(batches), tensors_to_calibrate(model), method="minmax"), batches


@pytest.fixture(scope="module")
def lowered() -> dict[str, onnx.ModelProto]:
    """Digits in each format with fp16 around it."""
    model, ranges, batches = digits()
    found = {}
    for name in FORMATS:
        source = raise_opset_for(model, {name: ["*"]})
        quantized = quantize(source, ranges, globs={name: ["*"]}).model
        found[name], _ = halve_unquantized(quantized, source, "float16", batches)
    return found


@pytest.mark.parametrize("name", FORMATS)
def test_nothing_fp32_is_left_but_inputs_and_outputs(lowered: dict[str, onnx.ModelProto], name: str) -> None:
    model = lowered[name]
    onnx.checker.check_model(model, full_check=True)
    floats = {t.name for t in model.graph.initializer if t.data_type == TensorProto.FLOAT}
    assert floats <= {"image_scale"}  # the input itself is fp32, and quantized from that
    scales = [t for t in model.graph.initializer if t.name.endswith("weight_scale")]
    assert scales
    assert {t.data_type for t in scales} == {HALF}


@pytest.mark.parametrize("name", ["int8", "int8_weights", "int4_weights"])
def test_digits_are_still_read(lowered: dict[str, onnx.ModelProto], name: str) -> None:
    test = np.load(RECIPES / "data" / "digits_test.npz")
    session = open_exact(lowered[name])
    scores = session.run(None, {"image": test["x"]})[0]
    assert (scores.argmax(axis=1) == test["y"]).mean() >= 0.985


@pytest.mark.parametrize(
    ("name", "capabilities"),
    [("int8", ("7.5",)), ("int8", ("8.9", "12.0")), ("fp8", ("8.9", "12.0")), ("int8_weights", ("7.5",)),
     ("int8_weights", ("8.9", "12.0")), ("int4_weights", ("8.9", "12.0"))],
)  # fmt: skip
def test_tensorrt_rtx_builds_it(
    lowered: dict[str, onnx.ModelProto], tmp_path: Path, name: str, capabilities: tuple[str, ...]
) -> None:
    pytest.importorskip("tensorrt_rtx")
    from engineworks.engines.backends import tensorrt_rtx
    from engineworks.engines.backends.base import BuildRequest
    from engineworks.engines.capabilities import why_not
    from engineworks.tensors import InputRange, Profile

    version = next(iter(tensorrt_rtx.versions().values()))
    operators = {"Conv", "Gemm", "Relu"}
    if any(
        why_not("tensorrt_rtx", version, p, capabilities, operators=operators, quantized=operators)
        for p in (name, "fp16")
    ):
        pytest.skip(f"TensorRT-RTX {version} cannot")
    onnx.save(lowered[name], str(tmp_path / "model.onnx"))
    (tmp_path / "out").mkdir()
    profile = Profile("default", {"image": InputRange((1, 1, 8, 8), (8, 1, 8, 8), (64, 1, 8, 8))})
    request = BuildRequest(tmp_path / "model.onnx", tmp_path / "out", name, (profile,), capabilities, {})
    try:
        tensorrt_rtx.build(request, lambda _: None)
    except BuildError as error:
        pytest.fail(str(error))
    assert (tmp_path / "out" / "engine").stat().st_size > 0


def growing() -> onnx.ModelProto:
    """y = (x @ w) * 300 * 300 / 90000: the products between pass 65504."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="product"),
        helper.make_node("Mul", ["a", "c"], ["b"], name="once"),
        helper.make_node("Mul", ["b", "c"], ["d"], name="twice"),
        helper.make_node("Div", ["d", "e"], ["y"], name="back"),
    ]
    stored = {"w": np.eye(4), "c": 300.0, "e": 90000.0}
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])],
        [numpy_helper.from_array(np.asarray(v, np.float32), n) for n, v in stored.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=10)


def feeds(count: int = 4) -> Iterator[dict[str, NDArray[np.float32]]]:
    for seed in range(count):
        yield {"x": np.random.default_rng(seed).uniform(-2, 2, (3, 4)).astype(np.float32)}


RANGES = Ranges("minmax", 1, {"x": Range(2, -2, 2, 0, 1)})


def test_what_overflows_stays_fp32_around_int8_too() -> None:
    quantized = quantize(growing(), RANGES).model
    made, report = halve_unquantized(quantized, growing(), "float16", feeds())
    assert {"twice", "back"} <= set(report.kept)
    assert "product" not in report.kept
    assert {n.op_type for n in made.graph.node} >= {"QuantizeLinear", "Cast"}


def test_noise_of_int8_itself_is_no_reason_to_keep_anything() -> None:
    """A range of a twentieth of what there is ruins the output; half precision adds nothing to that."""
    narrow = Ranges("minmax", 1, {"x": Range(0.1, -0.1, 0.1, 0, 1)})
    _, report = halve_unquantized(quantize(growing(), narrow).model, growing(), "float16", feeds())
    assert report.rounds == 0
    assert "product" not in report.kept


def test_half_precision_that_adds_noise_is_refused_with_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    from engineworks.model.lower.half import unquantized

    monkeypatch.setattr(unquantized, "MORE_NOISE_DB", -60.0)
    narrow = Ranges("minmax", 1, {"x": Range(0.1, -0.1, 0.1, 0, 1)})
    with pytest.raises(LoweringError, match=r"float16 around quantized nodes: output 'y' has a signal to noise ratio"):
        halve_unquantized(quantize(growing(), narrow).model, growing(), "float16", feeds())


def masked_attention(far: float) -> onnx.ModelProto:
    """y = softmax(x @ w + (1 - mask) * far) @ v: where a row is masked as a whole, a far mask swallows the scores."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["scores"], name="scores"),
        helper.make_node("Cast", ["mask"], ["seen"], name="seen", to=TensorProto.FLOAT),
        helper.make_node("Sub", ["one", "seen"], ["hidden"], name="hidden"),
        helper.make_node("Mul", ["hidden", "far"], ["bias"], name="bias"),
        helper.make_node("Add", ["scores", "bias"], ["sum"], name="add"),
        helper.make_node("Softmax", ["sum"], ["p"], name="softmax", axis=-1),
        helper.make_node("MatMul", ["p", "v"], ["y"], name="out"),
    ]
    rng = np.random.default_rng(5)
    stored = {"w": rng.normal(size=(32, 32)), "v": rng.normal(size=(32, 8)), "one": 1.0, "far": far}
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "g",
        [value("x", TensorProto.FLOAT, ["n", 32]), value("mask", TensorProto.INT64, ["n", 32])],
        [value("y", TensorProto.FLOAT, ["n", 8])],
        [numpy_helper.from_array(np.asarray(v, np.float32), n) for n, v in stored.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def mask_feeds(whole_rows: bool) -> list[dict[str, NDArray[Any]]]:
    rng = np.random.default_rng(6)
    found = []
    for _ in range(4):
        mask = (rng.uniform(size=(8, 32)) < 0.7).astype(np.int64)
        mask[:, 0] = 1
        if whole_rows:
            mask[::2] = 0
        found.append({"x": rng.normal(size=(8, 32)).astype(np.float32), "mask": mask})
    return found


@pytest.mark.parametrize("whole_rows", [True, False])
@pytest.mark.parametrize("far", [-1e9, -3.4028234663852886e38])
@pytest.mark.parametrize("globs", [{name: ["*"]} for name in FORMATS] + [{"int8": ["scores"], "int8_weights": ["out"]}])
def test_masks_are_clamped_around_quantized_nodes_just_where_plain_fp16_clamps_them(
    tmp_path: Path, globs: dict[str, list[str]], far: float, whole_rows: bool
) -> None:
    batches = mask_feeds(whole_rows)
    onnx.save(masked_attention(far), str(tmp_path / "m.onnx"))
    tensors = tensors_to_calibrate(masked_attention(far))
    ranges = collect_ranges(tmp_path / "m.onnx", lambda: iter(batches), tensors, method="minmax")
    source = raise_opset_for(masked_attention(far), globs)
    plain = lower_half(source, "float16", batches, autocast=False)[1]
    bench = Bench(tmp_path)
    with_fp32 = reference_outputs(bench, quantize(source, ranges, globs=globs).model, batches)
    (before,) = compare_outputs(reference_outputs(bench, source, batches), with_fp32)
    made, report = halve_unquantized(quantize(source, ranges, globs=globs).model, source, "float16", batches)
    assert clamped(report) == clamped(plain) == (() if whole_rows else ("far",))
    assert report.outputs[0].sqnr_db > before.sqnr_db - 1
    onnx.checker.check_model(made, full_check=True)


def test_a_mask_that_a_constant_of_shape_makes_is_clamped_as_well() -> None:
    source = masked_attention(-1e9)
    shape = helper.make_node("Shape", ["scores"], ["size"], name="size")
    filling = numpy_helper.from_array(np.asarray([-1e9], np.float32))
    nodes = list(source.graph.node)
    filled = helper.make_node("ConstantOfShape", ["size"], ["far_rows"], name="filled", value=filling)
    bias = helper.make_node("Mul", ["hidden", "far_rows"], ["bias"], name="bias")
    nodes[3:4] = [shape, filled, bias]
    del source.graph.node[:]
    source.graph.node.extend(nodes)
    batches = mask_feeds(whole_rows=False)
    quantized = quantize(source, None, globs={"int8_weights": ["*"]}).model
    assert clamped(halve_unquantized(quantized, source, "float16", batches)[1]) == ("far_rows",)
