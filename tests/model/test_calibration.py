"""Calibration: exact counts in one pass, thresholds as defined, models cut into segments, errors that name the tensor."""

from __future__ import annotations

import json
import math
import platform
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import onnxruntime
import pytest
from exact_sessions import open_exact
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from engineworks.errors import CalibrationError, SamplesError
from engineworks.host.gpu import Gpu
from engineworks.model.calibrate import collect, runtime, sessions
from engineworks.model.calibrate.activations import (
    LEVELS,
    MAX_CLIPPED,
    _divergences,
    entropy_bin,
    mse_bin,
    percentile_bin,
)
from engineworks.model.calibrate.collect import collect_ranges
from engineworks.model.calibrate.device_counts import COUNTED, DeviceCounter
from engineworks.model.calibrate.histograms import MIN_EXPONENT, BinCounter, Histogram
from engineworks.model.calibrate.ranges import Method, Range, Ranges
from engineworks.model.calibrate.runtime import Device, choose_providers
from engineworks.model.calibrate.segments import plan_segments, tensor_types
from engineworks.model.calibrate.sessions import Place
from engineworks.model.calibrate.trust import warnings
from engineworks.model.calibrate.values import LARGE, DeviceValues, HostValues, Values
from engineworks.model.lower.quantize import tensors_to_calibrate

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
METHODS: tuple[Method, ...] = ("minmax", "entropy", "percentile", "mse", "moving_average")
node = helper.make_node
Batches = Callable[[], Iterable[Mapping[str, NDArray[Any]]]]


def value(name: str, shape: Sequence[int | str], dtype: int = FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, shape)


def weight(name: str, content: object, dtype: type = np.float32) -> onnx.TensorProto:
    return numpy_helper.from_array(np.array(content, dtype), name)


def save(
    folder: Path,
    nodes: Sequence[onnx.NodeProto],
    weights: Sequence[onnx.TensorProto] = (),
    *,
    shape: Sequence[int | str] = ("n", 8),
    outputs: Sequence[str] = ("y",),
) -> Path:
    """An ONNX file with the input x f32[shape]."""
    results = [onnx.ValueInfoProto(name=name) for name in outputs]
    graph = helper.make_graph(list(nodes), "test", [value("x", shape)], results, list(weights))
    path = folder / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def samples(*shapes: tuple[int, ...], seed: int = 0) -> Batches:
    random = np.random.default_rng(seed)
    arrays = [random.standard_normal(shape, dtype=np.float32) for shape in shapes]
    return lambda: ({"x": array} for array in arrays)


def chain(length: int) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """t1 = relu(2x - 1), t2 = relu(2 t1 - 1) + x, …: every other tensor takes the input in again."""
    nodes, before = [], "x"
    for at in range(1, length + 1):
        nodes.append(node("Mul", [before, "two"], [f"m{at}"]))
        nodes.append(node("Sub", [f"m{at}", "one"], [f"s{at}"]))
        nodes.append(node("Tanh", [f"s{at}"], [f"r{at}"]))
        nodes.append(node("Add", [f"r{at}", "x"], [f"t{at}"]))
        before = f"t{at}"
    return nodes, [weight("two", 2), weight("one", 1)]


def outputs_of(path: Path, names: Sequence[str], feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """All the named tensors of one plain run of the whole model."""
    model = onnx.load(path)
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name != "y")
    session = open_exact(model)
    return dict(zip(names, session.run(list(names), dict(feeds)), strict=True))


# Histograms


@pytest.mark.parametrize("order", ["growing", "shrinking", "as drawn"])
def test_counts_do_not_depend_on_the_order_of_batches(order: str) -> None:
    random = np.random.default_rng(0)
    batches = [random.standard_normal(40_000, dtype=np.float32) * np.float32(s) for s in (1e-3, 5.0, 0.2, 64.0)]
    if order != "as drawn":
        batches.sort(key=lambda b: float(np.abs(b).max()), reverse=order == "shrinking")
    histogram = Histogram(1024)
    for batch in batches:
        histogram.add(HostValues(batch, BinCounter(1024)).counts, float(np.abs(batch).max()))
    everything = np.abs(np.concatenate(batches)).astype(np.float64)
    expected, _ = np.histogram(everything, 1024, range=(0, 1024 * histogram.bin_width))
    assert np.array_equal(histogram.counts, expected)
    assert histogram.counts.nonzero()[0].max() >= 512, "at least half of the bins are below the largest magnitude"


def test_a_magnitude_at_a_power_of_two_still_falls_into_a_bin() -> None:
    histogram = Histogram(256)
    histogram.add(HostValues(np.array([-4.0, 0.0, 4.0], np.float32), BinCounter(256)).counts, 4.0)
    assert histogram.counts.sum() == 3
    assert histogram.counts[int(4.0 / histogram.bin_width)] == 2


def test_magnitudes_near_the_limits_of_float32_are_counted() -> None:
    histogram = Histogram(256)
    tiny, huge = np.float32(1e-45), np.finfo(np.float32).max
    histogram.add(HostValues(np.array([tiny], np.float32), BinCounter(256)).counts, float(tiny))
    assert histogram.exponent == MIN_EXPONENT
    histogram.add(HostValues(np.array([huge, -huge], np.float32), BinCounter(256)).counts, float(huge))
    assert histogram.counts[0] == 1
    assert histogram.counts[-1] == 2


def test_half_and_double_precision_are_counted_as_single_is() -> None:
    values = np.linspace(-3, 3, 1001).astype(np.float16)
    counts = []
    for dtype in (np.float16, np.float32, np.float64):
        histogram = Histogram(512)
        histogram.add(HostValues(values.astype(dtype), BinCounter(512)).counts, 3.0)
        counts.append(histogram.counts)
    assert np.array_equal(counts[0], counts[1])
    assert np.array_equal(counts[0], counts[2])


# Counting where ONNX Runtime computes: here by its CPU provider


def on_device(values: NDArray[Any], bins: int, device: Device = "cpu") -> Values:
    counter = DeviceCounter(bins, choose_providers(device), device)
    tensor = onnxruntime.OrtValue.ortvalue_from_numpy(values, device, 0)
    return DeviceValues(tensor, COUNTED[tensor.data_type()], values.size, counter)


DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("which", ["counts", "sampled_counts"])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("shape", [(3, 700, 11), (1024,), (1,), ()])
def test_a_device_counts_what_the_host_counts(shape: tuple[int, ...], dtype: type, which: str, device: Device) -> None:
    values = np.random.default_rng(1).standard_normal(shape).astype(dtype)
    values = np.where(values > 1, np.zeros((), dtype), values)  # many zeros, as behind a ReLU
    there, here = on_device(values, 512, device), HostValues(values, BinCounter(512))
    assert there.size == here.size
    assert there.extremes() == here.extremes()
    found = getattr(there, which)(3)
    assert np.array_equal(found, getattr(here, which)(3))
    assert found.dtype == np.int64


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_device_sees_what_is_not_finite(bad: float, device: Device) -> None:
    values = np.array([1.0, bad, -2.0], np.float32)
    there, here = on_device(values, 512, device).extremes(), HostValues(values, BinCounter(512)).extremes()
    np.testing.assert_equal(there, here)


@pytest.mark.parametrize("method", METHODS)
def test_ranges_are_the_same_where_tensors_stay_on_the_device(monkeypatch: pytest.MonkeyPatch, method: Method) -> None:
    recipes = Path(__file__).parents[2] / "recipes"
    path = recipes / "models" / "digits_cnn.onnx"
    images = np.load(recipes / "data" / "digits_calib.npz")["x"][:24]
    batches = [{"image": images[at : at + 5]} for at in range(0, 24, 5)]
    names = tensors_to_calibrate(onnx.load(path))

    def found() -> Ranges:
        return collect_ranges(path, lambda: iter(batches), names, method=method, bins=512, samples=24)

    monkeypatch.setattr(collect, "open_reductions", lambda *a, **options: None)
    expected = found()
    counted: list[str] = []
    count = DeviceCounter.extremes
    monkeypatch.setattr(DeviceCounter, "extremes", lambda *a: counted.append("one") or count(*a))
    device = Place("cpu", ("CPUExecutionProvider",))
    monkeypatch.setattr(sessions, "_place", lambda sessions, providers: device)
    assert found() == expected
    assert len(counted) == (len(names) - 1) * len(batches)  # all but the input


def test_a_moving_average_samples_the_first_batches_and_then_some() -> None:
    looks: list[bool] = []

    class Passes:
        inputs, provider = (), "none"

        def run(self, feeds: object, seen: object, *, look: bool) -> None:
            looks.append(look)

        def finish(self) -> None: ...

    batches: list[dict[str, NDArray[Any]]] = [{}] * 40
    assert collect._run_all(cast(collect.Passes, Passes()), batches, {}, None, None) == (40, {})
    assert [at for at, look in enumerate(looks, 1) if look] == [*range(1, 9), 16, 32]


def test_a_large_tensor_is_sampled_and_a_small_one_is_not() -> None:
    counter = BinCounter(512)
    large = HostValues(np.full(LARGE * 4, 0.5, np.float32), counter)
    small = HostValues(np.full(LARGE, 0.5, np.float32), counter)
    assert large.sampled_counts(0).sum() == pytest.approx(large.size, rel=0.05)
    assert small.sampled_counts(0).sum() == small.size


# Thresholds


def test_divergences_are_those_of_the_definition() -> None:
    random = np.random.default_rng(0)
    values = np.abs(np.concatenate([random.standard_normal(20_000), random.standard_normal(20) * 5]))
    counts, _ = np.histogram(values, 300, range=(0, values.max()))
    bins = counts.astype(np.float64)

    def defined(length: int) -> float:
        p, q = bins[:length].copy(), np.zeros(length)
        p[-1] += bins[length:].sum()
        for level in range(LEVELS):
            part = slice(length * level // LEVELS, length * (level + 1) // LEVELS)
            filled = bins[part] > 0
            q[part][filled] = bins[part].sum() / max(filled.sum(), 1)
        p, q = p / p.sum(), q / q.sum()
        if (q[p > 0] == 0).any():
            return math.inf
        return float((p[p > 0] * np.log(p[p > 0] / q[p > 0])).sum())

    expected = [defined(length) for length in range(LEVELS, 301)]
    assert any(map(math.isinf, expected)), "the case of an empty last bin is among them"
    np.testing.assert_allclose(_divergences(bins), expected, rtol=1e-9, atol=1e-12)


def test_entropy_clips_outliers_of_a_bell_curve() -> None:
    random = np.random.default_rng(0)
    values = np.abs(np.concatenate([random.standard_normal(1_000_000), [60.0]]))
    counts, _ = np.histogram(values, 8192, range=(0, 64))
    assert 3 < entropy_bin(counts) * 64 / 8192 < 16


def test_entropy_keeps_all_of_few_distinct_values() -> None:
    counts = np.zeros(8192, np.int64)
    counts[np.arange(17) * 256] = 1000  # pixels of four bits
    assert entropy_bin(counts) * 1.0 >= 16 * 256


def test_the_squared_error_is_that_of_quantizing_every_value() -> None:
    random = np.random.default_rng(0)
    for values in (random.standard_normal(50_000), random.laplace(size=50_000), random.uniform(0, 1, 50_000)):
        magnitudes = np.abs(values)
        counts, edges = np.histogram(magnitudes, 8192, range=(0, 2 ** math.ceil(math.log2(magnitudes.max()))))
        amax = mse_bin(counts) * edges[1]

        def error(amax: float, magnitudes: NDArray[np.float64] = magnitudes) -> float:
            step = amax / 127
            return float(((np.minimum(np.rint(magnitudes / step), 127) * step - magnitudes) ** 2).mean())

        candidates = np.linspace(0.05, 1, 300) * magnitudes.max()
        assert error(amax) <= 1.01 * min(error(candidate) for candidate in candidates)


def test_the_least_squared_error_of_few_magnitudes_keeps_them_all() -> None:
    counts = np.zeros(8192, np.int64)
    counts[[5, 4095, 8191]] = 1000
    assert mse_bin(counts) >= 8192 * 0.99
    assert mse_bin(np.zeros(8192, np.int64)) == 0


def test_entropy_does_not_clip_at_the_spike_of_a_background() -> None:
    """Half of all values are -0.8, the others spread up to 2: the divergence alone would clip a quarter of them."""
    random = np.random.default_rng(0)
    values = np.concatenate([np.full(50_000, 0.8), random.uniform(0, 2, 50_000)])
    counts, _ = np.histogram(values, 8192, range=(0, 2))
    assert (values > entropy_bin(counts) * 2 / 8192).mean() <= MAX_CLIPPED


@pytest.mark.parametrize("percentile", [50.0, 99.0, 99.99, 100.0])
def test_percentile_is_that_of_all_values_to_within_a_bin(percentile: float) -> None:
    values = np.abs(np.random.default_rng(0).standard_normal(200_000))
    counts, _ = np.histogram(values, 8192, range=(0, 8))
    found = percentile_bin(counts, percentile) * 8 / 8192
    assert 0 <= found - np.percentile(values, percentile) <= 8 / 8192 + 1e-4
    assert (values < found).mean() >= percentile / 100 - 1e-12


# Collecting


@pytest.mark.parametrize("method", METHODS)
def test_ranges_are_those_of_a_plain_run(tmp_path: Path, method: Method) -> None:
    path = save(tmp_path, *chain(30), outputs=["t30"])
    names = ["x", *(f"t{at}" for at in range(1, 31))]
    batches = samples((4, 8), (4, 8), (4, 8))
    found = collect_ranges(path, batches, names, method=method)
    plain = [outputs_of(path, names[1:], feeds) | dict(feeds) for feeds in batches()]
    for name in names:
        every = np.concatenate([run[name].ravel() for run in plain])
        seen = found.tensors[name]
        assert seen.minimum == pytest.approx(every.min(), abs=1e-6)
        assert seen.maximum == pytest.approx(every.max(), abs=1e-6)
        assert seen.values == every.size
        assert seen.amax <= np.abs(every).max() + 1e-6
        tolerance = 0.02  # half a step beyond the range is no bin's edge
        assert seen.saturated == pytest.approx(
            (np.abs(every) > seen.amax * (1 + 0.5 / 127) + 1e-6).mean(), abs=tolerance
        )
        if method == "minmax":
            assert seen.amax == pytest.approx(np.abs(every).max(), abs=1e-6)


@pytest.mark.parametrize("method", ["minmax", "entropy", "percentile", "mse"])
def test_how_values_fall_into_batches_changes_nothing(tmp_path: Path, method: Method) -> None:
    path = save(tmp_path, [node("Relu", ["x"], ["y"])], shape=["n", "length"])
    values = np.random.default_rng(0).standard_normal(6000, dtype=np.float32)
    parts = np.split(values, [10, 1000, 1001, 4321])
    ragged = collect_ranges(path, lambda: [{"x": part[None]} for part in parts], ["x", "y"], method=method)
    whole = collect_ranges(path, lambda: [{"x": values[None]}], ["x", "y"], method=method)
    assert ragged.tensors == whole.tensors


def test_a_moving_average_is_the_mean_of_the_batches_extremes(tmp_path: Path) -> None:
    path = save(tmp_path, [node("Relu", ["x"], ["y"])], shape=["n", "length"])
    arrays = [np.array([[-1, 2]], np.float32), np.array([[-3, 4, 0]], np.float32), np.array([[-8, 1]], np.float32)]

    def amax(averaging: float | None) -> tuple[float, float]:
        batches = [{"x": array} for array in arrays]
        found = collect_ranges(path, lambda: batches, ["x", "y"], method="moving_average", averaging=averaging)
        return found.tensors["x"].amax, found.tensors["y"].amax

    assert amax(None) == pytest.approx((4, 7 / 3))
    assert amax(0.5) == pytest.approx((5, 2))
    assert amax(1.0) == pytest.approx((8, 1))


@pytest.mark.parametrize("method", METHODS)
def test_codes_that_no_value_reaches_are_counted(tmp_path: Path, method: Method) -> None:
    path = save(tmp_path, [node("Relu", ["x"], ["y"])])
    values = np.linspace(-1, 1, 80_000, dtype=np.float32).reshape(-1, 8)
    found = collect_ranges(path, lambda: [{"x": values}], ["x", "y"], method=method).tensors
    assert found["x"].unused == pytest.approx(0, abs=0.01)
    assert found["y"].unused == pytest.approx(127 / 255, abs=0.01)


@pytest.mark.parametrize("method", ["minmax", "entropy", "percentile", "moving_average"])
def test_values_at_the_end_of_the_range_are_not_clipped(tmp_path: Path, method: Method) -> None:
    path = save(tmp_path, [node("Relu", ["x"], ["y"])])
    pixels = (np.arange(17_000) % 17 / 16).astype(np.float32).reshape(-1, 8)
    (seen,) = collect_ranges(path, lambda: [{"x": pixels}], ["x"], method=method).tensors.values()
    assert (seen.amax, seen.saturated) == (1.0, 0.0)


def test_gaps_between_values_count_as_unused_codes(tmp_path: Path) -> None:
    path = save(tmp_path, [node("Relu", ["x"], ["y"])])
    values = np.tile(np.array([-1, -0.5, 0, 1], np.float32), 400).reshape(-1, 8)
    (seen,) = collect_ranges(path, lambda: [{"x": values}], ["x"], method="mse").tensors.values()
    assert 255 * (1 - seen.unused) == pytest.approx(4, abs=3)


@pytest.mark.parametrize("method", METHODS)
def test_ranges_that_the_last_samples_move_say_so(tmp_path: Path, method: Method) -> None:
    path = save(tmp_path, [node("Relu", ["x"], ["y"])])
    arrays = [np.random.default_rng(at).uniform(-1, 1, (5, 8)).astype(np.float32) for at in range(10)]
    settled = collect_ranges(path, lambda: [{"x": a} for a in arrays], ["x"], method=method, samples=50)
    assert settled.tensors["x"].moved < 0.02
    for array in arrays[8:]:
        array *= 10
    moved = collect_ranges(path, lambda: [{"x": a} for a in arrays], ["x"], method=method, samples=50)
    assert moved.tensors["x"].moved > 0.5


def test_ragged_batches_are_one_sample_set(tmp_path: Path) -> None:
    path = save(tmp_path, [node("Relu", ["x"], ["y"])], shape=["n", "length"])
    done: list[int] = []
    found = collect_ranges(
        path, samples((2, 3), (5, 17), (1, 1)), ["x", "y"], method="percentile", progress=done.append
    )
    assert done == [2, 7, 8]
    assert found.sample_count == 8
    assert found.tensors["y"].values == 2 * 3 + 5 * 17 + 1


def test_an_empty_batch_changes_nothing(tmp_path: Path) -> None:
    path = save(tmp_path, [node("Relu", ["x"], ["y"])])
    with_empty = collect_ranges(path, samples((3, 8), (0, 8)), ["y"], method="entropy")
    assert with_empty == collect_ranges(path, samples((3, 8)), ["y"], method="entropy")


@pytest.mark.parametrize("method", METHODS)
def test_a_tensor_that_is_always_zero_gets_a_safe_scale_and_is_listed(tmp_path: Path, method: Method) -> None:
    path = save(tmp_path, [node("Abs", ["x"], ["a"]), node("Neg", ["a"], ["b"]), node("Relu", ["b"], ["y"])])
    found = collect_ranges(path, samples((4, 8)), ["a", "y"], method=method)
    assert found.constants == ("y",)
    assert (found.tensors["y"].amax, found.tensors["y"].scale, found.tensors["y"].saturated) == (0, 1, 0)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("bad", "said"), [(np.nan, "NaN"), (np.inf, "infinity"), (-np.inf, "infinity")])
def test_a_value_that_is_not_finite_names_the_tensor(tmp_path: Path, method: Method, bad: float, said: str) -> None:
    path = save(tmp_path, [node("Abs", ["x"], ["a"]), node("Sqrt", ["a"], ["y"])])
    array = np.ones((2, 8), np.float32)
    array[1, 3] = bad
    with pytest.raises(CalibrationError, match=f"activation 'a' holds {said}"):
        collect_ranges(path, lambda: [{"x": array}], ["a", "y"], method=method)


def test_an_integer_tensor_is_refused_by_name(tmp_path: Path) -> None:
    path = save(tmp_path, [node("Shape", ["x"], ["y"])])
    with pytest.raises(CalibrationError, match="'y' is int64, not a float"):
        collect_ranges(path, samples((2, 8)), ["y"], method="minmax")


def test_a_tensor_that_the_model_lacks_is_answered_with_a_suggestion(tmp_path: Path) -> None:
    path = save(tmp_path, [node("Relu", ["x"], ["relu_out"])], outputs=["relu_out"])
    with pytest.raises(CalibrationError, match=r"no activation 'relu_uot'; did you mean 'relu_out'\?"):
        collect_ranges(path, samples((2, 8)), ["relu_uot"], method="minmax")


@pytest.mark.parametrize(
    ("feeds", "said"), [({"z": 1}, "has no 'x'; it holds 'z'"), ({"x": 1, "z": 1}, "holds 'z', which is no input")]
)
def test_samples_of_other_names_are_refused(tmp_path: Path, feeds: Mapping[str, int], said: str) -> None:
    path = save(tmp_path, [node("Relu", ["x"], ["y"])])
    arrays = {name: np.zeros((2, 8), np.float32) for name in feeds}
    with pytest.raises(SamplesError, match=said):
        collect_ranges(path, lambda: [arrays], ["y"], method="minmax")


def test_samples_of_another_shape_are_refused_with_the_runtimes_words(tmp_path: Path) -> None:
    path = save(tmp_path, [node("Relu", ["x"], ["y"])])
    with pytest.raises(CalibrationError, match="Got: 7 Expected: 8"):
        collect_ranges(path, samples((2, 7)), ["y"], method="minmax")


def test_no_samples_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path, [node("Relu", ["x"], ["y"])])
    with pytest.raises(SamplesError, match="no calibration samples"):
        collect_ranges(path, list, ["y"], method="minmax")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"method": "mean"}, "unknown calibration method 'mean'"),
        ({"method": "percentile", "percentile": 0}, "percentile 0 is not in"),
        ({"method": "entropy", "bins": 1000}, "1000 bins"),
        ({"method": "moving_average", "averaging": 1.5}, "averaging 1.5 is not in"),
    ],
)
def test_settings_that_make_no_sense_are_refused(tmp_path: Path, options: dict[str, Any], said: str) -> None:
    path = save(tmp_path, [node("Relu", ["x"], ["y"])])
    with pytest.raises(CalibrationError, match=said):
        collect_ranges(path, samples((2, 8)), ["y"], **options)


def test_weights_beside_the_file_are_found(tmp_path: Path) -> None:
    weights = np.random.default_rng(1).standard_normal((8, 512), dtype=np.float32)
    path = save(tmp_path, [node("MatMul", ["x", "w"], ["y"])], [weight("w", weights)])
    inside = collect_ranges(path, samples((4, 8)), ["y"], method="minmax")
    model = onnx.load(path)
    onnx.save(model, path, save_as_external_data=True, location="model.data", size_threshold=1024)
    assert path.stat().st_size < weights.nbytes
    assert collect_ranges(path, samples((4, 8)), ["y"], method="minmax") == inside


# Devices


def test_a_gpu_that_is_not_there_is_said_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    path = save(tmp_path, [node("Relu", ["x"], ["y"])])
    assert collect_ranges(path, samples((2, 8)), ["y"], method="minmax").provider == "CPUExecutionProvider"
    with pytest.raises(CalibrationError, match="no CUDA provider here"):
        collect_ranges(path, samples((2, 8)), ["y"], method="minmax", device="cuda")


@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_the_model_runs_on_a_gpu_where_there_is_one(monkeypatch: pytest.MonkeyPatch, device: Device) -> None:
    both = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: both)
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None)
    monkeypatch.setattr(runtime, "first_gpu", lambda: Gpu("H100", "9.0", "580", "13.0"))
    (cuda, options), cpu = choose_providers(device)
    assert [cuda, cpu] == both
    assert options["use_tf32"] == "0"
    assert choose_providers("cpu") == ["CPUExecutionProvider"]
    monkeypatch.setattr(runtime, "first_gpu", lambda: None)
    assert choose_providers("auto") == ["CPUExecutionProvider"]


@pytest.mark.gpu
@pytest.mark.parametrize("method", METHODS)
def test_ranges_found_on_a_gpu_are_those_of_the_cpu(tmp_path: Path, method: Method) -> None:
    """Sums in another order move values by some 1e-6 of the largest; entropy may then choose a neighbouring bin."""
    random = np.random.default_rng(0)
    nodes = [
        node("Conv", ["x", "w"], ["c"], pads=[1] * 4), node("Relu", ["c"], ["r"]),
        node("Conv", ["r", "v"], ["d"], pads=[1] * 4), node("Tanh", ["d"], ["y"]),
    ]  # fmt: skip
    weights = [weight("w", random.standard_normal((16, 3, 3, 3))), weight("v", random.standard_normal((8, 16, 3, 3)))]
    path = save(tmp_path, nodes, weights, shape=("n", 3, "h", "w"))
    batches = samples((2, 3, 32, 32), (1, 3, 48, 16), (3, 3, 32, 32))
    names = ["x", "c", "r", "d", "y"]
    cpu = collect_ranges(path, batches, names, method=method, device="cpu")
    gpu = collect_ranges(path, batches, names, method=method, device="cuda")
    assert gpu.provider == "CUDAExecutionProvider"
    tolerance = 0.02 if method in ("entropy", "mse") else 1e-3
    for name in names:
        assert gpu.tensors[name].amax == pytest.approx(cpu.tensors[name].amax, rel=tolerance), name
        assert gpu.tensors[name].minimum == pytest.approx(cpu.tensors[name].minimum, rel=1e-3, abs=1e-4)
        sampled = 0.02 if method == "moving_average" else 1e-3  # of other values here than there
        assert gpu.tensors[name].saturated == pytest.approx(cpu.tensors[name].saturated, abs=sampled)


# Segments


def test_segments_hold_few_wanted_tensors_and_meet_where_little_crosses(tmp_path: Path) -> None:
    model = onnx.load(save(tmp_path, *chain(30), outputs=["t30"]))
    wanted = [f"t{at}" for at in range(1, 31)]
    segments = plan_segments(model, wanted, tensor_types(model), tensors_per_segment=8)
    assert len(segments) >= 3
    assert all(len(set(segment.outputs) & set(wanted)) <= 12 for segment in segments)
    assert [segment.start for segment in segments[1:]] == [segment.stop for segment in segments[:-1]]
    for segment in segments[1:]:
        assert len(segment.inputs) == 2, "the chain's last tensor and x"


def test_nodes_after_the_last_wanted_tensor_do_not_run(tmp_path: Path) -> None:
    path = save(tmp_path, [node("Relu", ["x"], ["a"]), node("Reshape", ["a", "impossible"], ["y"])],
                [weight("impossible", [3, 5, 7], np.int64)])  # fmt: skip
    assert collect_ranges(path, samples((2, 8)), ["a"], method="minmax").sample_count == 2


def test_tensors_that_branches_capture_cross_the_cut(tmp_path: Path) -> None:
    early, late = chain(10), chain(20)
    branch = helper.make_graph([node("Add", ["t3", "t10"], ["then_out"])], "then", [], [value("then_out", ["n", 8])])
    other = helper.make_graph([node("Identity", ["t10"], ["else_out"])], "else", [], [value("else_out", ["n", 8])])
    choose = [
        node("Constant", [], ["flag"], value=numpy_helper.from_array(np.array(True))),
        node("If", ["flag"], ["t10b"], then_branch=branch, else_branch=other),
    ]
    rest = [n for n in late[0] if int(n.output[0][1:]) > 10]
    rest[0].input[0] = "t10b"
    path = save(tmp_path, [*early[0], *choose, *rest], early[1], outputs=["t20"])
    names = [*(f"t{at}" for at in range(1, 21)), "t10b"]
    batches = samples((4, 8))
    found = collect_ranges(path, batches, names, method="minmax")
    plain = outputs_of(path, names, next(iter(batches())))
    model = onnx.load(path)
    assert len(plan_segments(model, names, tensor_types(model))) > 1
    for name in names:
        assert found.tensors[name].maximum == pytest.approx(float(plain[name].max()), abs=1e-6)


def test_a_sequence_is_never_cut_through(tmp_path: Path) -> None:
    before, weights = chain(9)
    nodes = [
        node("SplitToSequence", ["x"], ["parts"], axis=1, keepdims=1),
        *before,
        node("SequenceAt", ["parts", "zero"], ["first"]),
        node("Add", ["t9", "first"], ["y"]),
    ]
    path = save(tmp_path, nodes, [*weights, weight("zero", 0, np.int64)])
    names = [*(f"t{at}" for at in range(1, 10)), *(f"r{at}" for at in range(1, 10)), "y"]
    assert set(collect_ranges(path, samples((2, 8)), names, method="minmax").tensors) == set(names)


def test_a_graph_that_is_not_sorted_stays_whole_and_runs(tmp_path: Path) -> None:
    nodes, weights = chain(12)
    path = save(tmp_path, nodes[::-1], weights, outputs=["t12"])
    model = onnx.load(path)
    wanted = [f"t{at}" for at in range(1, 13)]
    assert len(plan_segments(model, wanted, tensor_types(model), tensors_per_segment=2)) == 1
    assert collect_ranges(path, samples((2, 8)), wanted, method="minmax").sample_count == 2


@pytest.mark.skipif(sys.platform != "linux", reason="reads the kernel's high-water mark")
def test_memory_does_not_grow_with_samples(tmp_path: Path) -> None:
    """Eight activations of 1 to 2 MiB, of a new length each time: keeping those of 40 more samples would take 480 MiB."""
    path = save(tmp_path, *chain(8), outputs=["t8"], shape=("n", "length"))
    script = f"""
import sys, pathlib, numpy as np
from engineworks.model.calibrate.collect import collect_ranges
values = np.linspace(-1, 1, 1 << 19, dtype=np.float32)[None]
batches = lambda: ({{"x": values[:, (at * 7919 * 64) % (1 << 18):]}} for at in range(int(sys.argv[1])))
tensors = [f"t{{at}}" for at in range(1, 9)]
collect_ranges(pathlib.Path({str(path)!r}), batches, tensors, method="mse", threads=1)
line = next(l for l in open("/proc/self/status") if l.startswith("VmHWM"))
print(int(line.split()[1]) // 1024)
"""
    peaks = [
        int(subprocess.run([sys.executable, "-c", script, count], check=True, capture_output=True).stdout)
        for count in ("10", "50")
    ]
    assert peaks[1] - peaks[0] <= 24


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other heaps are left alone")
def test_holes_in_the_heap_are_given_back() -> None:
    """Freed tensors of 3 MiB with blocks of 1 MiB between them: 120 MiB of holes."""
    script = """
import numpy as np
from engineworks.host.memory import settle_heap, trim_heap

def resident():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmRSS")).split()[1]) // 1024

settle_heap()
large, small = [], []
for _ in range(40):
    large.append(np.ones(3 << 20, np.uint8))
    small.append(np.ones(1 << 20, np.uint8))
del large
before = resident()
trim_heap()
print(before - resident())
"""
    freed = int(subprocess.run([sys.executable, "-c", script], check=True, capture_output=True).stdout)
    assert freed > 60  # half of them: pages that are used again meanwhile are not given back


# The artifact


def test_ranges_survive_json_exactly() -> None:
    ranges = Ranges(
        "percentile", 12, {"a": Range(0.1, -1 / 3, 0.1, 1e-4, 77, 0.3, 0.09)}, {"percentile": 99.9, "bins": 8192}
    )
    assert Ranges.from_json(json.loads(json.dumps(ranges.to_json()))) == ranges


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"method": "mean"}, "'method' is not as documented: input should be 'minmax'"),
        ({"sample_count": None}, "'sample_count' is not as documented"),
        ({"tensors": {"a": {"amax": "wide"}}}, r"'tensors\.a\.amax' is not as documented"),
        ({"tensors": {"a": 3}}, r"'tensors\.a' is not as documented"),
    ],
)
def test_damaged_ranges_are_refused(change: dict[str, object], said: str) -> None:
    document = Ranges("minmax", 1, {"a": Range(1, -1, 1, 0, 8)}).to_json()
    with pytest.raises(CalibrationError, match=said):
        Ranges.from_json({**document, **change})


def test_a_document_without_ranges_is_refused() -> None:
    with pytest.raises(CalibrationError, match="'method' is missing"):
        Ranges.from_json({"sample_count": 1})


@pytest.mark.parametrize("method", METHODS)
def test_a_tensor_that_no_sample_fills_has_no_range_and_is_listed(tmp_path: Path, method: Method) -> None:
    nodes = [node("Slice", ["x", "zero", "zero"], ["none"]), node("Relu", ["none"], ["a"]), node("Relu", ["x"], ["y"])]
    path = save(tmp_path, nodes, [weight("zero", [0], np.int64)])
    found = collect_ranges(path, samples((4, 8)), ["a", "y"], method=method)
    assert (found.empty, set(found.tensors)) == (("a",), {"y"})
    assert Ranges.from_json(json.loads(json.dumps(found.to_json()))) == found
    assert "'a' was empty in every calibration sample: nodes that read them" in " ".join(
        warnings(found, {}, repeated=False)
    )
