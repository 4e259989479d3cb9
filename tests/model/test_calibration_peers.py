"""Our ranges beside those of ONNX Runtime's and ModelOpt's own calibrators, on the same model and samples.

What really runs in them: ONNX Runtime's MinMaxCalibrater takes the mean over the batches that one `collect_data` gets
(`moving_average`) and an exponential average from call to call. Its histograms have as many bins as asked for over the
range of the first call, and grow from there. Its Entropy with the default 128 bins and 128 levels has one candidate,
the whole range: it equals min-max. ModelOpt 0.47's ONNX path (`modelopt.onnx.quantization.quantize`) replaces ONNX
Runtime's collectors by its own copies, which stand ragged batches, and leaves bins and thresholds as they are.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from engineworks.model.calibrate.collect import collect_ranges
from engineworks.model.calibrate.ranges import Method

Arrays = Mapping[str, NDArray[Any]]
TENSORS = ("x", "hidden", "y")
BATCHES, ROWS = 6, 64


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """y = relu(x @ first) @ second: tensors with tails on both sides, and half zeros."""
    random = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(random.standard_normal((32, 32), dtype=np.float32), n) for n in ("first", "second")
    ]
    nodes = [
        helper.make_node("MatMul", ["x", "first"], ["product"], name="first"),
        helper.make_node("Relu", ["product"], ["hidden"], name="relu"),
        helper.make_node("MatMul", ["hidden", "second"], ["y"], name="second"),
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 32]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "peers", ends[:1], ends[1:], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


def batches(rows: Sequence[int] = (ROWS,) * BATCHES) -> list[dict[str, NDArray[np.float32]]]:
    """Heavy-tailed samples; the first batch holds the largest value, so that no peer's histogram has to grow."""
    random = np.random.default_rng(1)
    found = [{"x": random.laplace(size=(count, 32)).astype(np.float32)} for count in rows]
    found[0]["x"][0] *= 3
    return found


def ours(model: Path, method: Method, feeds: Sequence[Arrays], **options: Any) -> dict[str, float]:
    found = collect_ranges(model, lambda: feeds, TENSORS, method=method, **options)
    return {name: seen.amax for name, seen in found.tensors.items()}


def onnxruntime_ranges(model: Path, method: str, calls: Sequence[Sequence[Arrays]], **options: Any) -> dict[str, float]:
    """amax by tensor of ONNX Runtime's calibrator, symmetric; `collect_data` is called once for each of `calls`."""
    from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, create_calibrator

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self, feeds: Sequence[Arrays]) -> None:
            self._feeds = iter(feeds)

        def get_next(self) -> Arrays | None:
            return next(self._feeds, None)

    augmented = str(model.with_name("augmented.onnx"))
    options = {"symmetric": True, **options}
    calibrator = create_calibrator(model, ["MatMul"], augmented, CalibrationMethod[method], extra_options=options)
    for feeds in calls:
        calibrator.collect_data(Reader(feeds))
    found = calibrator.compute_data()
    return {n: float(np.abs(np.concatenate([np.ravel(e) for e in found[n].range_value])).max()) for n in TENSORS}


def modelopt_amax(model: Path, feeds: Sequence[Arrays], tensor: str, method: str, **options: Any) -> float:
    """What ModelOpt's histogram calibrator for torch finds in the tensor, 2048 bins over the first batch's range."""
    calib = pytest.importorskip("modelopt.torch.quantization.calib")
    torch = pytest.importorskip("torch")
    calibrator = calib.HistogramCalibrator(num_bits=8, axis=None, unsigned=False, num_bins=2048)
    for feed in feeds:
        calibrator.collect(torch.from_numpy(activations(model, [feed])[tensor]))
    return float(calibrator.compute_amax(method, **options))


@contextmanager
def restored_onnxruntime(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """ModelOpt patches ONNX Runtime's calibrators for the whole process, and takes operators out of its registries."""
    from onnxruntime.quantization import calibrate, registry

    with monkeypatch.context() as patch:
        for kind in (v for v in vars(calibrate).values() if isinstance(v, type) and v.__module__ == calibrate.__name__):
            for name, value in list(vars(kind).items()):
                if inspect.isfunction(value):
                    patch.setattr(kind, name, value)
        for name in ("QDQRegistry", "QLinearOpsRegistry"):
            for key, value in list(getattr(registry, name).items()):
                patch.setitem(getattr(registry, name), key, value)
        yield


def squared_error(values: NDArray[np.float32], amax: float) -> float:
    step = amax / 127
    return float(((np.clip(np.rint(values / step), -127, 127) * step - values) ** 2).mean())


def activations(model: Path, feeds: Sequence[Arrays]) -> dict[str, NDArray[np.float32]]:
    x = np.concatenate([f["x"] for f in feeds])
    first, second = (numpy_helper.to_array(t) for t in onnx.load(model).graph.initializer)
    hidden = np.maximum(x @ first, 0)
    return {"x": x, "hidden": hidden, "y": hidden @ second}


def test_min_max_is_that_of_onnx_runtime(model: Path) -> None:
    feeds = batches()
    assert ours(model, "minmax", feeds) == pytest.approx(onnxruntime_ranges(model, "MinMax", [feeds]), rel=1e-6)


def test_the_mean_over_batches_is_onnx_runtimes_moving_average_of_one_call(model: Path) -> None:
    feeds = batches()
    theirs = onnxruntime_ranges(model, "MinMax", [feeds], moving_average=True)
    assert ours(model, "moving_average", feeds) == pytest.approx(theirs, rel=1e-6)
    assert ours(model, "moving_average", feeds)["y"] < 0.7 * ours(model, "minmax", feeds)["y"]


@pytest.mark.parametrize("constant", [0.01, 0.3])
def test_an_exponential_average_is_onnx_runtimes_from_call_to_call(model: Path, constant: float) -> None:
    """Its collector makes each call's range symmetric first where it is told to, and the quantizer does it again."""
    feeds = batches()
    options = {"moving_average": True, "averaging_constant": constant, "symmetric": False}
    theirs = onnxruntime_ranges(model, "MinMax", [[one] for one in feeds], **options)
    assert ours(model, "moving_average", feeds, averaging=constant) == pytest.approx(theirs, rel=1e-5)


@pytest.mark.parametrize("percentile", [99.0, 99.9, 99.99])
def test_percentiles_are_onnx_runtimes_to_within_a_bin_of_each(model: Path, percentile: float) -> None:
    """It takes the lower edge of the bin that holds the percentile, we the upper one of a bin that is finer."""
    feeds = batches()
    theirs = onnxruntime_ranges(model, "Percentile", [feeds], percentile=percentile)
    largest = ours(model, "minmax", feeds)
    for name, amax in ours(model, "percentile", feeds, percentile=percentile).items():
        assert abs(amax - theirs[name]) <= largest[name] * (1 / 2048 + 1 / 4096), name


def test_entropy_lies_between_onnx_runtimes_choices_and_costs_no_more(model: Path) -> None:
    """Its threshold moves by a factor of two with the number of bins and levels that it is given; the default is
    min-max. Ours has to lie within, and its squared error within a tenth of the least that their search finds."""
    feeds = batches()
    settings = ((128, 128), (1024, 128), (1024, 256))
    theirs = [onnxruntime_ranges(model, "Entropy", [feeds], num_bins=b, num_quantized_bins=q) for b, q in settings]
    assert theirs[0] == pytest.approx(ours(model, "minmax", feeds), rel=1e-6)
    values = activations(model, feeds)
    for name, amax in ours(model, "entropy", feeds).items():
        choices = [found[name] for found in theirs]
        assert min(choices) <= amax <= max(choices), name
        assert squared_error(values[name], amax) <= 1.1 * min(squared_error(values[name], c) for c in choices[1:]), name


@pytest.mark.torch
@pytest.mark.parametrize("rows_per_batch", [ROWS, ROWS * BATCHES])
@pytest.mark.parametrize("method", ["max", "entropy"])
def test_both_of_modelopts_onnx_methods_are_our_min_max(
    model: Path, method: str, rows_per_batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its entropy is ONNX Runtime's with 128 bins, which has nothing to choose from unless a later batch is wider."""
    quantization = pytest.importorskip("modelopt.onnx.quantization")
    feeds = batches()
    quantized = model.with_name("quantized.onnx")
    with restored_onnxruntime(monkeypatch):
        quantization.quantize(
            str(model), quantize_mode="int8", calibration_method=method, output_path=str(quantized),
            calibration_data={"x": np.concatenate([f["x"] for f in feeds])}, calibration_eps=["cpu"],
            calibration_shapes=f"x:{rows_per_batch}x32", high_precision_dtype="fp32", op_types_to_quantize=["MatMul"],
        )  # fmt: skip
    graph = onnx.load(quantized).graph
    scales = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    found = {
        n.input[0]: 127 * float(scales[n.input[1]])
        for n in graph.node
        if n.op_type == "QuantizeLinear" and n.input[0] in TENSORS
    }
    assert found.keys() == {"x", "hidden"}
    largest = ours(model, "minmax", feeds)
    assert found == pytest.approx({name: largest[name] for name in found}, rel=1e-5)


@pytest.mark.torch
@pytest.mark.parametrize(
    ("method", "tolerance", "options"), [("entropy", 0.03, {}), ("percentile", 0.002, {"percentile": 99.9})]
)
def test_histogram_methods_are_those_of_modelopts_torch_calibrator(
    model: Path, method: Method, tolerance: float, options: dict[str, float]
) -> None:
    feeds = batches()
    theirs = {name: modelopt_amax(model, feeds, name, method, **options) for name in TENSORS}
    assert ours(model, method, feeds, **options) == pytest.approx(theirs, rel=tolerance)


@pytest.mark.torch
def test_our_least_squared_error_is_not_above_modelopts(model: Path) -> None:
    """ModelOpt 0.47's `_compute_amax_mse` hands `num_bits` to `fake_tensor_quant` in the place of `bias`, and ends at
    the narrowest range: only the error itself can be compared."""
    feeds = batches()
    values = activations(model, feeds)
    for name, amax in ours(model, "mse", feeds).items():
        theirs = modelopt_amax(model, feeds, name, "mse")
        assert squared_error(values[name], amax) <= 1.01 * squared_error(values[name], theirs), name


def test_the_least_squared_error_is_not_above_any_peers(model: Path) -> None:
    feeds = batches()
    values = activations(model, feeds)
    peers = [
        onnxruntime_ranges(model, "MinMax", [feeds]),
        onnxruntime_ranges(model, "Percentile", [feeds], percentile=99.9),
        onnxruntime_ranges(model, "Entropy", [feeds], num_bins=1024, num_quantized_bins=256),
    ]
    for name, amax in ours(model, "mse", feeds).items():
        least = min(squared_error(values[name], peer[name]) for peer in peers)
        assert squared_error(values[name], amax) <= 1.01 * least, name
