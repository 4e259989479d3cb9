"""INT8 Q/DQ: what is quantized, what is kept and why, and that the numbers are right."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from exact_sessions import open_exact
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from engineworks.errors import LoweringError
from engineworks.model.calibrate.collect import collect_ranges
from engineworks.model.calibrate.ranges import METHODS, Method, Range, Ranges
from engineworks.model.lower.formats import quantize_weight
from engineworks.model.lower.quantizable import WORTHWHILE
from engineworks.model.lower.quantize import Quantized, quantize, raise_opset_for, tensors_to_calibrate

RECIPES = Path(__file__).parents[2] / "recipes"
FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
node = helper.make_node


def value(name: str, shape: Sequence[int | str] | None, dtype: int = FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, shape)


def weight(name: str, *shape: int, dtype: type = np.float32, seed: int = 0) -> onnx.TensorProto:
    return numpy_helper.from_array(np.random.default_rng(seed).standard_normal(shape).astype(dtype), name)


def model_of(
    nodes: Sequence[onnx.NodeProto],
    weights: Sequence[onnx.TensorProto] = (),
    *,
    shape: Sequence[int | str] = ("n", 8),
    output: Sequence[int | str] | None = ("n", 4),
    opset: int = 17,
) -> onnx.ModelProto:
    """A model from x f32[shape] to y f32[output]; nodes are named after what they make."""
    for one in nodes:
        one.name = one.name or f"make_{one.output[0]}"
    graph = helper.make_graph(list(nodes), "test", [value("x", shape)], [value("y", output)], list(weights))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def ranges_of(*tensors: str, amax: float = 4.0) -> Ranges:
    return Ranges("minmax", 1, {name: Range(amax, -amax, amax, 0, 1) for name in tensors})


def lower(model: onnx.ModelProto, **options: Any) -> Quantized:
    """Quantize with a range of 4 for everything, and check what comes out."""
    found = quantize(model, ranges_of(*tensors_to_calibrate(model)), **options)
    onnx.checker.check_model(found.model, full_check=True)
    return found


def run(model: onnx.ModelProto, feeds: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
    session = open_exact(model)
    result: NDArray[np.float32] = session.run(None, dict(feeds))[0]
    return result


def cosine(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    return float((a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b))


def of_type(model: onnx.ModelProto, op_type: str) -> list[onnx.NodeProto]:
    return [n for n in model.graph.node if n.op_type == op_type]


def initializer(model: onnx.ModelProto, name: str) -> NDArray[Any]:
    return numpy_helper.to_array(next(t for t in model.graph.initializer if t.name == name))


def names_of(model: onnx.ModelProto) -> list[str]:
    return [t.name for t in model.graph.initializer]


# The real model of the digits recipe


def digits() -> tuple[Path, NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]]:
    test = np.load(RECIPES / "data" / "digits_test.npz")
    calibration = np.load(RECIPES / "data" / "digits_calib.npz")["x"]
    return RECIPES / "models" / "digits_cnn.onnx", calibration, test["x"], test["y"]


def batches_of(images: NDArray[np.float32]) -> Iterator[dict[str, NDArray[np.float32]]]:
    for start in range(0, len(images), 16):
        yield {"image": images[start : start + 16]}


def digits_in_int8(method: Method) -> Quantized:
    path, calibration, _, _ = digits()
    model = onnx.load(path)
    ranges = collect_ranges(path, lambda: batches_of(calibration), tensors_to_calibrate(model), method=method)
    return quantize(model, ranges)


@pytest.mark.parametrize("method", METHODS)
def test_digits_keep_their_accuracy_in_int8(method: Method) -> None:
    path, _, images, labels = digits()
    found = digits_in_int8(method)
    onnx.checker.check_model(found.model, full_check=True)
    scores = run(found.model, {"image": images})
    assert (scores.argmax(axis=1) == labels).mean() >= 0.985
    assert cosine(run(onnx.load(path), {"image": images}), scores) >= 0.9998
    assert found.kept_nodes == ()
    assert found.model.ByteSize() < 0.4 * path.stat().st_size


@pytest.mark.parametrize(("method", "theirs"), [("minmax", "MinMax"), ("entropy", "Entropy")])
def test_digits_are_at_least_as_close_as_by_onnxruntime(tmp_path: Path, method: Method, theirs: str) -> None:
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    path, calibration, images, _ = digits()
    batches = batches_of(calibration)

    class Reader:
        def get_next(self) -> dict[str, NDArray[np.float32]] | None:
            return next(batches, None)

    quantize_static(
        path, tmp_path / "theirs.onnx", Reader(), quant_format=QuantFormat.QDQ, per_channel=True,
        activation_type=QuantType.QInt8, weight_type=QuantType.QInt8, calibrate_method=CalibrationMethod[theirs],
        op_types_to_quantize=["Conv", "Gemm", "MatMul"],
        extra_options={"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False},
    )  # fmt: skip
    exact = run(onnx.load(path), {"image": images})
    ours = cosine(exact, run(digits_in_int8(method).model, {"image": images}))
    assert ours >= cosine(exact, run(onnx.load(tmp_path / "theirs.onnx"), {"image": images}))


def test_calibration_on_black_images_shows_in_the_ranges_and_costs_accuracy() -> None:
    path, calibration, images, labels = digits()
    model = onnx.load(path)
    black = calibration * 0
    ranges = collect_ranges(path, lambda: batches_of(black), tensors_to_calibrate(model), method="minmax")
    assert "image" in ranges.constants
    scores = run(quantize(model, ranges).model, {"image": images})
    assert (scores.argmax(axis=1) == labels).mean() < 0.95


def test_tensorrt_rtx_builds_an_engine_from_the_int8_model() -> None:
    trt = pytest.importorskip("tensorrt_rtx")
    if not hasattr(trt.IBuilderConfig, "set_compute_capability"):
        pytest.skip("this TensorRT-RTX cannot build for a GPU that is not here")
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    assert parser.parse(digits_in_int8("entropy").model.SerializeToString()), parser.get_error(0)
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM89, 0)
    profile = builder.create_optimization_profile()
    profile.set_shape("image", (1, 1, 8, 8), (8, 1, 8, 8), (32, 1, 8, 8))
    config.add_optimization_profile(profile)
    assert builder.build_serialized_network(network, config) is not None


# Activations


def shared_input() -> onnx.ModelProto:
    """relu(x) read by two products and by one Add."""
    nodes = [
        node("Relu", ["x"], ["r"]),
        node("MatMul", ["r", "w1"], ["a"]),
        node("Gemm", ["r", "w2", "c"], ["b"], transB=1),
        node("Add", ["a", "b"], ["ab"]),
        node("ReduceMax", ["r"], ["m"], axes=[1]),
        node("Add", ["ab", "m"], ["y"]),
    ]
    return model_of(nodes, [weight("w1", 8, 4), weight("w2", 4, 8, seed=1), weight("c", 4, seed=2)])


def test_one_pair_of_nodes_serves_all_quantized_consumers_and_no_other() -> None:
    found = lower(shared_input())
    assert found.activations == ("r",)
    assert len(of_type(found.model, "QuantizeLinear")) == 1
    (product,), (gemm,) = of_type(found.model, "MatMul"), of_type(found.model, "Gemm")
    assert product.input[0] == gemm.input[0] == "r_dequantized"
    assert of_type(found.model, "ReduceMax")[0].input[0] == "r"


def test_scales_are_fp32_initializers_with_predictable_names_and_biases_stay() -> None:
    found = lower(shared_input())
    assert {"r_scale", "r_zero_point", "w1_scale", "w1_zero_point", "w2_scale"} <= set(names_of(found.model))
    scale, zero_point = initializer(found.model, "r_scale"), initializer(found.model, "r_zero_point")
    assert scale.dtype == np.float32
    assert scale.shape == ()
    assert float(scale) == pytest.approx(4 / 127)
    assert zero_point.dtype == np.int8
    assert int(zero_point) == 0
    assert of_type(found.model, "Gemm")[0].input[2] == "c"
    assert initializer(found.model, "c").dtype == np.float32


def product_of_activations() -> onnx.ModelProto:
    nodes = [node("Transpose", ["x"], ["t"], perm=[0, 2, 1]), node("MatMul", ["x", "t"], ["y"])]
    return model_of(nodes, shape=["n", 4, 8], output=["n", 4, 4])


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_products_of_two_activations_stay_unless_they_are_named(kind: str) -> None:
    model = raise_opset_for(product_of_activations(), {kind: ["*"]})
    kept = lower(model, globs={kind: [WORTHWHILE]}).kept_nodes
    assert [k.name for k in kept] == ["make_y"]
    assert "two activations" in kept[0].reason
    for pattern in ("op:MatMul", "make_y", "*"):
        assert lower(model, globs={kind: [pattern]}).quantized_nodes == ("make_y",)


def test_a_product_of_two_activations_is_quantized_on_both_sides() -> None:
    model = product_of_activations()
    found = lower(model, globs={"int8": ["make_y"]})
    assert found.activations == ("x", "t")
    x = np.random.default_rng(0).uniform(-4, 4, (2, 4, 8)).astype(np.float32)
    assert cosine(run(model, {"x": x}), run(found.model, {"x": x})) > 0.999


def test_an_activation_without_a_range_is_named() -> None:
    with pytest.raises(LoweringError, match="activation 'r' has no calibration range"):
        quantize(shared_input(), ranges_of("x"))


# Depthwise convolutions


def depthwise_then_pointwise() -> onnx.ModelProto:
    nodes = [
        node("Conv", ["x", "w1"], ["d"], group=6, name="depthwise"),
        node("Conv", ["d", "w2"], ["g"], group=3, name="groups"),
        node("Conv", ["g", "w3"], ["y"], name="pointwise"),
    ]
    stored = [weight("w1", 6, 1, 3, 3), weight("w2", 6, 2, 1, 1), weight("w3", 4, 6, 1, 1)]
    return model_of(nodes, stored, shape=["n", 6, 8, 8], output=["n", 4, 6, 6])


def test_depthwise_convolutions_stay_unless_they_are_named() -> None:
    found = lower(depthwise_then_pointwise())
    assert found.quantized_nodes == ("groups", "pointwise")
    assert [k.name for k in found.kept_nodes] == ["depthwise"]
    assert "depthwise" in found.kept_nodes[0].reason
    named = lower(depthwise_then_pointwise(), globs={"int8": ["depth*"]})
    assert named.quantized_nodes == ("depthwise",)
    every = lower(depthwise_then_pointwise(), globs={"int8": ["*"]})
    assert every.quantized_nodes == ("depthwise", "groups", "pointwise")
    assert lower(depthwise_then_pointwise(), globs={"int8": ["*"]}, keep=["depth*"]).quantized_nodes == (
        "groups", "pointwise",
    )  # fmt: skip


def test_depthwise_weights_alone_are_quantized() -> None:
    assert "depthwise" in lower(depthwise_then_pointwise(), globs={"int8_weights": ["*"]}).quantized_nodes


def test_thin_convolutions_stay_out_of_fp8_unless_they_are_named() -> None:
    nodes = [node("Conv", ["x", "w1"], ["a"], name="thin"), node("Conv", ["a", "w2"], ["y"], name="wide")]
    stored = [weight("w1", 32, 16, 1, 1), weight("w2", 17, 32, 1, 1)]
    model = model_of(nodes, stored, shape=["n", 16, 4, 4], output=["n", 17, 4, 4])
    model.opset_import[0].version = 19
    found = lower(model, globs={"fp8": [WORTHWHILE]})
    assert found.quantized_nodes == ("wide",)
    assert "at most 16 channels" in found.kept_nodes[0].reason
    assert lower(model, globs={"fp8": ["*"]}).quantized_nodes == ("thin", "wide")
    assert lower(model, globs={"fp8": ["op:Conv"]}).quantized_nodes == ("thin", "wide")
    assert lower(model, globs={"int8": ["*"]}).quantized_nodes == ("thin", "wide")


def test_a_depthwise_convolution_is_calibrated_all_the_same() -> None:
    """Which nodes become int8 is decided later, and may change without a new calibration."""
    assert tensors_to_calibrate(depthwise_then_pointwise()) == ("x", "d", "g")


# Weights


WEIGHTED: dict[str, tuple[onnx.NodeProto, tuple[int, ...], tuple[int, ...], tuple[int, ...]]] = {
    # node, shape of x, shape of w, shape of its scale
    "Conv": (node("Conv", ["x", "w"], ["y"]), (2, 6, 5, 5), (7, 6, 3, 3), (7,)),
    "Conv in groups": (node("Conv", ["x", "w"], ["y"], group=3), (2, 6, 5, 5), (9, 2, 3, 3), (9,)),
    "Conv of one axis": (node("Conv", ["x", "w"], ["y"]), (2, 6, 5), (7, 6, 3), (7,)),
    "ConvTranspose": (node("ConvTranspose", ["x", "w"], ["y"]), (2, 6, 5, 5), (6, 7, 3, 3), (7,)),
    "ConvTranspose in groups": (node("ConvTranspose", ["x", "w"], ["y"], group=3), (2, 6, 5, 5), (6, 2, 3, 3), ()),
    "Gemm": (node("Gemm", ["x", "w"], ["y"]), (5, 6), (6, 7), (7,)),
    "Gemm, transB": (node("Gemm", ["x", "w"], ["y"], transB=1), (5, 6), (7, 6), (7,)),
    "Gemm, alpha": (node("Gemm", ["x", "w"], ["y"], alpha=0.5), (5, 6), (6, 7), (7,)),
    "Gemm on the left": (node("Gemm", ["w", "x"], ["y"]), (5, 6), (7, 5), (7,)),
    "Gemm on the left, transA": (node("Gemm", ["w", "x"], ["y"], transA=1), (5, 6), (5, 7), (7,)),
    "MatMul": (node("MatMul", ["x", "w"], ["y"]), (2, 5, 6), (6, 7), (7,)),
    "MatMul on the left": (node("MatMul", ["w", "x"], ["y"]), (2, 5, 6), (7, 5), (7,)),
    "MatMul in batches": (node("MatMul", ["x", "w"], ["y"]), (2, 5, 6), (2, 6, 7), ()),
    "MatMul with a vector": (node("MatMul", ["x", "w"], ["y"]), (2, 5, 6), (6,), ()),
}


@pytest.mark.parametrize("case", WEIGHTED)
def test_weights_have_a_scale_for_each_output_channel(case: str) -> None:
    op, x_shape, w_shape, scale_shape = WEIGHTED[case]
    random = np.random.default_rng(0)
    w = random.standard_normal(w_shape)
    if scale_shape:  # channels of very different sizes: one scale for all, or one along another axis, would lose most
        axis = w_shape.index(*scale_shape)
        w = np.moveaxis(np.moveaxis(w, axis, -1) * np.logspace(0, -4, scale_shape[0]), -1, axis)
    w = w.astype(np.float32)
    model = model_of([op], [numpy_helper.from_array(w, "w")], shape=x_shape, output=None)
    x = random.uniform(-4, 4, x_shape).astype(np.float32)
    found = quantize(model, ranges_of("x"))
    assert (found.weights, found.activations, found.kept_nodes) == (("w",), ("x",), ())
    assert initializer(found.model, "w_scale").shape == scale_shape
    assert initializer(found.model, "w_quantized").dtype == np.int8
    assert "w" not in names_of(found.model)
    exact, lowered = run(model, {"x": x}), run(found.model, {"x": x})
    assert (np.abs(exact - lowered) > 0.3 * np.abs(exact)).mean() < 0.15, "small channels keep their digits"
    assert cosine(exact, lowered) > 0.999


def test_a_weight_that_several_nodes_read_is_stored_once() -> None:
    nodes = [
        node("MatMul", ["x", "w"], ["a"]),
        node("Neg", ["x"], ["n"]),
        node("MatMul", ["n", "w"], ["b"]),
        node("Add", ["a", "b"], ["y"]),
    ]
    found = lower(model_of(nodes, [weight("w", 8, 4)]))
    assert [name for name in names_of(found.model) if name.startswith("w")] == [
        "w_quantized",
        "w_scale",
        "w_zero_point",
    ]
    first, second = of_type(found.model, "MatMul")
    assert first.input[1] == second.input[1] == "w_dequantized"


def test_a_weight_that_others_read_stays_for_them_in_fp32() -> None:
    nodes = [
        node("MatMul", ["x", "w"], ["a"]),
        node("ReduceSum", ["w"], ["s"], keepdims=0),
        node("Add", ["a", "s"], ["y"]),
    ]
    found = lower(model_of(nodes, [weight("w", 8, 4)]))
    assert {"w", "w_quantized"} <= set(names_of(found.model))


def test_a_weight_seen_along_two_axes_has_scales_along_both() -> None:
    nodes = [node("MatMul", ["x", "w"], ["a"]), node("Gemm", ["a", "w"], ["y"], transB=1)]
    model = model_of(nodes, [weight("w", 8, 8)], output=["n", 8])
    found = lower(model)
    scales = [initializer(found.model, n) for n in names_of(found.model) if n.startswith("w_scale")]
    assert len(scales) == 2
    assert not np.array_equal(scales[0], scales[1])


@pytest.mark.parametrize("through", ["Constant", "Identity", "Transpose", "Transpose of Constant"])
def test_a_weight_is_found_behind_nodes_that_change_no_value(through: str) -> None:
    w = np.random.default_rng(0).standard_normal((8, 4)).astype(np.float32)
    seen = np.ascontiguousarray(w.T) if "Transpose" in through else w
    constant = node("Constant", [], ["w0"], value=numpy_helper.from_array(seen))
    nodes = {
        "Constant": [constant, node("MatMul", ["x", "w0"], ["y"])],
        "Identity": [node("Identity", ["w0"], ["w1"]), node("MatMul", ["x", "w1"], ["y"])],
        "Transpose": [node("Transpose", ["w0"], ["w1"], perm=[1, 0]), node("MatMul", ["x", "w1"], ["y"])],
        "Transpose of Constant": [constant, node("Transpose", ["w0"], ["w1"]), node("MatMul", ["x", "w1"], ["y"])],
    }[through]
    stored = [] if "Constant" in through else [numpy_helper.from_array(seen, "w0")]
    model = model_of(nodes, stored)
    found = lower(model)
    assert found.weights == ("w0",)
    assert [n.op_type for n in found.model.graph.node if n.op_type in ("Constant", "Identity", "Transpose")] == []
    assert "w0" not in names_of(found.model)
    x = np.random.default_rng(1).uniform(-4, 4, (16, 8)).astype(np.float32)
    assert cosine(run(model, {"x": x}), run(found.model, {"x": x})) > 0.999


def test_a_channel_of_zeros_has_a_scale_that_divides() -> None:
    values, scale = quantize_weight(np.array([[0, 0], [1, -2], [1e-40, 0]], np.float32), 0, "w")
    assert scale.tolist() == pytest.approx([1, 2 / 127, 1])
    assert values.tolist() == [[0, 0], [64, -127], [0, 0]]


def test_rounding_in_blocks_is_rounding_at_once() -> None:
    w = np.random.default_rng(0).standard_normal((1000, 700)).astype(np.float32)
    for axis in (0, 1, None):
        values, scale = quantize_weight(w, axis, "w")
        wide = scale.reshape(-1, 1) if axis == 0 else scale
        assert np.array_equal(values, np.clip(np.rint(w / wide), -127, 127))
        assert np.abs(values).max() == 127


def test_a_weight_that_is_not_finite_is_named() -> None:
    bad = numpy_helper.from_array(np.full((8, 4), np.inf, np.float32), "w")
    with pytest.raises(LoweringError, match="weight 'w' holds NaN or infinity"):
        quantize(model_of([node("MatMul", ["x", "w"], ["y"])], [bad]), ranges_of("x"))


def test_weights_that_were_not_loaded_are_named_but_need_not_be_to_plan(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    model = model_of([node("MatMul", ["x", "w"], ["y"])], [weight("w", 8, 4)])
    onnx.save(model, path, save_as_external_data=True, location="model.data", size_threshold=0)
    bare = onnx.load(path, load_external_data=False)
    assert tensors_to_calibrate(bare) == ("x",)
    with pytest.raises(LoweringError, match="weight 'w' are not loaded"):
        quantize(bare, ranges_of("x"))


# What is kept


def test_globs_keep_nodes_by_name_and_by_type() -> None:
    model = shared_input()
    assert lower(model, keep=["make_a"]).quantized_nodes == ("make_b",)
    assert lower(model, keep=["*_b"]).quantized_nodes == ("make_a",)
    kept = lower(model, keep=["op:Gemm"])
    assert kept.quantized_nodes == ("make_a",)
    assert [(k.name, k.op_type, k.reason) for k in kept.kept_nodes] == [("make_b", "Gemm", "kept by 'op:Gemm'")]


def test_a_glob_with_brackets_matches_the_name_itself() -> None:
    model = model_of([node("MatMul", ["x", "w"], ["y"], name="layer[0]/product")], [weight("w", 8, 4)])
    assert lower(model, keep=["layer[0]/product"]).quantized_nodes == ()


@pytest.mark.parametrize(("pattern", "meant"), [("make_aa", "make_a"), ("op:Gem", "op:Gemm")])
def test_an_entry_of_keep_that_matches_nothing_is_an_error_with_a_suggestion(pattern: str, meant: str) -> None:
    for act in (lambda: quantize(shared_input(), ranges_of("r"), keep=[pattern]),
                lambda: tensors_to_calibrate(shared_input(), [pattern])):  # fmt: skip
        with pytest.raises(LoweringError, match=f"keep: '{pattern}' matches no node.*did you mean '{meant}'"):
            act()


def test_only_the_asked_types_are_quantized() -> None:
    assert lower(shared_input(), op_types=["Gemm"]).quantized_nodes == ("make_b",)


KEPT: dict[str, tuple[list[onnx.NodeProto], list[onnx.TensorProto], str]] = {
    "weights made at run time": (
        [node("Reshape", ["x", "s"], ["k"]), node("Conv", ["x", "k"], ["y"])],
        [numpy_helper.from_array(np.array([1, 8, 1], np.int64), "s")],
        "computed at run time",
    ),
    "a constant that was not folded": (
        [node("Neg", ["w"], ["nw"]), node("MatMul", ["x", "nw"], ["y"])],
        [weight("w", 8, 4)],
        "'nw' is a constant that was not folded",
    ),
    "both constant": ([node("MatMul", ["w", "v"], ["y"])], [weight("w", 8, 4), weight("v", 4, 4)], "both its operands"),
    "a weight of another type": (
        [node("Cast", ["x"], ["h"], to=TensorProto.FLOAT16), node("MatMul", ["h", "w"], ["y"])],
        [weight("w", 8, 4, dtype=np.float16)],
        "'w' is float16, not float32",
    ),
    "quantized already": (
        [
            node("QuantizeLinear", ["x", "s", "z"], ["q"]),
            node("DequantizeLinear", ["q", "s", "z"], ["d"]),
            node("MatMul", ["d", "w"], ["y"]),
        ],
        [
            weight("w", 8, 4),
            numpy_helper.from_array(np.array(1, np.float32), "s"),
            numpy_helper.from_array(np.array(0, np.int8), "z"),
        ],
        "'d' is quantized already",
    ),
}


@pytest.mark.parametrize("case", KEPT)
def test_a_node_that_can_not_be_quantized_is_kept_with_a_reason(case: str) -> None:
    nodes, weights, said = KEPT[case]
    model = model_of(nodes, weights, shape=["n", 8, 3] if "run time" in said else ["n", 8])
    found = quantize(model, ranges_of())
    assert found.quantized_nodes == ()
    (kept,) = found.kept_nodes
    assert said in kept.reason
    assert tensors_to_calibrate(model) == ()
    assert [n.op_type for n in found.model.graph.node] == [n.op_type for n in model.graph.node]


def test_an_opset_before_13_is_refused() -> None:
    model = model_of([node("MatMul", ["x", "w"], ["y"])], [weight("w", 8, 4)], opset=12)
    with pytest.raises(LoweringError, match="opset 12; int8 needs 13"):
        quantize(model, ranges_of("x"))


# The model as a whole


def test_the_same_input_gives_the_same_bytes_and_is_left_alone() -> None:
    model = shared_input()
    before = model.SerializeToString()
    first, second = lower(model), lower(shared_input())
    assert first.model.SerializeToString() == second.model.SerializeToString()
    assert model.SerializeToString() == before


def test_names_that_are_taken_are_not_taken_twice() -> None:
    nodes = [
        node("Relu", ["x"], ["x_scale"]),
        node("MatMul", ["x", "w"], ["x_dequantized"], name="x_QuantizeLinear"),
        node("Add", ["x_dequantized", "w_scale"], ["z"]),
        node("ReduceMax", ["x_scale"], ["m"], axes=[1]),
        node("Add", ["z", "m"], ["y"]),
    ]
    model = model_of(nodes, [weight("w", 8, 4), weight("w_scale", 4, seed=1)])
    found = lower(model)
    made = [name for n in found.model.graph.node for name in n.output] + names_of(found.model)
    assert len(made) == len(set(made))
    labels = [n.name for n in found.model.graph.node]
    assert len(labels) == len(set(labels))
    x = np.random.default_rng(1).uniform(-4, 4, (16, 8)).astype(np.float32)
    assert cosine(run(model, {"x": x}), run(found.model, {"x": x})) > 0.999


def test_metadata_functions_and_value_types_are_carried_over() -> None:
    model = shared_input()
    model.producer_name = "exporter"
    helper.set_model_props(model, {"author": "someone"})
    model.graph.doc_string = "a graph"
    model.graph.value_info.append(value("r", ["n", 8]))
    body = [node("Relu", ["i"], ["o"])]
    model.functions.append(helper.make_function("own", "f", ["i"], ["o"], body, [helper.make_opsetid("", 17)]))
    model.opset_import.append(helper.make_opsetid("own", 1))
    found = quantize(model, ranges_of("r")).model
    for field in ("producer_name", "metadata_props", "opset_import", "functions", "ir_version"):
        assert getattr(found, field) == getattr(model, field)
    assert found.graph.doc_string == "a graph"
    assert [v.name for v in found.graph.value_info] == ["r"]


def test_weights_that_are_listed_as_inputs_leave_that_list_too() -> None:
    model = model_of([node("MatMul", ["x", "w"], ["y"])], [weight("w", 8, 4)])
    model.graph.input.append(value("w", [8, 4]))
    found = lower(model)
    assert [v.name for v in found.model.graph.input] == ["x"]
    assert found.weights == ("w",)


@pytest.mark.slow
def test_a_model_of_more_than_two_gigabytes_is_quantized_in_memory() -> None:
    rows, columns = 1 << 14, 1 << 14
    values = np.ones((rows, columns), np.float32)
    weights = [numpy_helper.from_array(values, name) for name in ("w", "table", "other")]
    nodes = [
        node("MatMul", ["x", "w"], ["a"]),
        node("Gather", ["table", "zero"], ["row"]),
        node("Gather", ["other", "zero"], ["row2"]),
        node("Add", ["a", "row"], ["b"]),
        node("Add", ["b", "row2"], ["y"]),
    ]
    zero = numpy_helper.from_array(np.array(0, np.int64), "zero")
    model = model_of(nodes, [*weights, zero], shape=["n", rows], output=["n", columns])
    found = quantize(model, ranges_of("x"))
    assert sum(len(t.raw_data) for t in found.model.graph.initializer) > (1 << 31)
    assert initializer(found.model, "w_quantized").shape == (rows, columns)


def test_a_node_whose_input_was_empty_in_every_sample_stays_as_it_is() -> None:
    nodes = [node("MatMul", ["x", "w"], ["h"]), node("Relu", ["h"], ["r"]), node("MatMul", ["r", "v"], ["y"])]
    model = model_of(nodes, [weight("w", 8, 4), weight("v", 4, 4)])
    seen = ranges_of("x")
    found = quantize(model, Ranges(seen.method, 1, seen.tensors, empty=("r",)))
    assert found.quantized_nodes == ("make_h",)
    assert [(k.name, k.reason) for k in found.kept_nodes] == [("make_y", "'r' was empty in every calibration sample")]
    onnx.checker.check_model(found.model, full_check=True)
