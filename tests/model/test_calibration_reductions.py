"""Extremes found by the model's own graph: those of the tensors themselves, for every rank, opset and derivation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from engineworks.errors import CalibrationError
from engineworks.model.calibrate import collect
from engineworks.model.calibrate.collect import collect_ranges
from engineworks.model.calibrate.ranges import Method, Ranges
from engineworks.model.calibrate.reductions import DERIVED, open_reductions
from engineworks.model.calibrate.values import LARGE

node = helper.make_node
METHODS: tuple[Method, ...] = ("minmax", "moving_average")


def save(
    folder: Path,
    nodes: Sequence[onnx.NodeProto],
    shape: Sequence[int | str] = ("n", 3, "h", "w"),
    weights: Mapping[str, NDArray[Any]] | None = None,
    opset: int = 18,
    dtype: int = TensorProto.FLOAT,
) -> Path:
    """An ONNX file with the input x and the last node's output."""
    ends = [helper.make_tensor_value_info("x", dtype, shape)], [onnx.ValueInfoProto(name=nodes[-1].output[0])]
    stored = [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()]
    graph = helper.make_graph(list(nodes), "reductions", *ends, stored)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8), folder / "m.onnx")
    return folder / "m.onnx"


def noise(*shapes: tuple[int, ...]) -> list[dict[str, NDArray[np.float32]]]:
    random = np.random.default_rng(0)
    return [{"x": random.standard_normal(shape, dtype=np.float32)} for shape in shapes]


def both(
    monkeypatch: pytest.MonkeyPatch, path: Path, batches: Any, names: Sequence[str], **options: Any
) -> list[Ranges]:
    """Ranges by reductions, and by tensors that are handed out."""
    assert open_reductions(path, names, 0, 512, sample=True) is not None
    found = [collect_ranges(path, lambda: batches, names, bins=512, **options)]
    monkeypatch.setattr(collect, "open_reductions", lambda *a, **k: None)
    return [*found, collect_ranges(path, lambda: batches, names, bins=512, **options)]


def assert_alike(found: Ranges, expected: Ranges, *, saturated: float = 0.0) -> None:
    """Another layout of the convolutions sums in another order."""
    assert found.sample_count == expected.sample_count
    assert found.tensors.keys() == expected.tensors.keys()
    for name, seen in found.tensors.items():
        other = expected.tensors[name]
        assert [seen.amax, seen.minimum, seen.maximum] == pytest.approx(
            [other.amax, other.minimum, other.maximum], rel=1e-5, abs=1e-6
        ), name
        assert seen.values == other.values, name
        assert seen.saturated == pytest.approx(other.saturated, abs=saturated), name
        assert seen.unused == pytest.approx(other.unused, abs=0.01), name


CONVOLUTIONS = [
    node("Conv", ["x", "v"], ["conv"], pads=[1] * 4), node("Relu", ["conv"], ["relu"]),
    node("Transpose", ["relu"], ["moved"], perm=[0, 2, 3, 1]), node("MatMul", ["moved", "w"], ["product"]),
    node("ReduceMean", ["product"], ["mean"], keepdims=0), node("Sigmoid", ["mean"], ["y"]),
]  # fmt: skip


@pytest.mark.parametrize("opset", [11, 13, 17, 18, 21])
@pytest.mark.parametrize("method", METHODS)
def test_ranges_are_those_of_tensors_that_are_handed_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: Method, opset: int
) -> None:
    random = np.random.default_rng(1)
    weights = {
        "v": random.standard_normal((16, 3, 3, 3), dtype=np.float32),
        "w": random.standard_normal((16, 5), dtype=np.float32),
    }
    path = save(tmp_path, CONVOLUTIONS, weights=weights, opset=opset)
    names = ["product", "x", "moved", "relu", "conv", "mean", "y"]
    batches = noise((2, 3, 8, 8), (1, 3, 17, 5), (3, 3, 8, 8))
    assert_alike(*both(monkeypatch, path, batches, names, method=method, samples=6))


def test_a_sample_says_about_how_much_is_clipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path, [node("Neg", ["x"], ["y"])], ("n", "length"))
    batches = noise(*[(1, LARGE * 4)] * 30)
    for batch in batches[10:]:
        batch["x"] *= 3
    found, expected = both(monkeypatch, path, batches, ["x", "y"], method="moving_average", averaging=0.05)
    assert expected.tensors["y"].saturated > 0
    assert_alike(found, expected, saturated=0.01)


@pytest.mark.parametrize(("op_type", "attributes", "extra"), [
    ("Relu", {}, []), ("Identity", {}, []), ("Reshape", {}, ["shape"]), ("Flatten", {"axis": 2}, []),
    ("Squeeze", {}, ["axis"]), ("Unsqueeze", {}, ["axis"]), ("Transpose", {"perm": [2, 0, 1]}, []),
])  # fmt: skip
def test_what_follows_from_another_tensor_is_not_reduced_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, op_type: str, attributes: dict[str, Any], extra: list[str]
) -> None:
    weights = {"shape": np.array([-1], np.int64), "axis": np.array([0], np.int64)}
    nodes = [node("Sin", ["x"], ["s"]), node(op_type, ["s", *extra], ["d"], **attributes), node("Abs", ["d"], ["y"])]
    path = save(tmp_path, nodes, (1, 4, 5), {name: weights[name] for name in extra})
    assert op_type in DERIVED
    reduced = open_reductions(path, ["d", "s"], 0, 512, sample=False)
    assert reduced is not None
    assert list(reduced._reduced) == ["s"]
    assert_alike(*both(monkeypatch, path, noise((1, 4, 5), (1, 4, 5)), ["d", "s"], method="moving_average"))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("at", [0, 1, 3000])
def test_one_nan_anywhere_is_seen(tmp_path: Path, method: Method, at: int) -> None:
    path = save(tmp_path, [node("Identity", ["x"], ["a"]), node("Abs", ["a"], ["y"])])
    batches = noise((1, 3, 32, 40), (1, 3, 32, 40))
    batches[1]["x"].reshape(-1)[at] = np.nan
    with pytest.raises(CalibrationError, match="activation 'y' holds NaN"):
        collect_ranges(path, lambda: batches, ["y"], method=method)


def test_sums_beyond_float32_are_no_nan(tmp_path: Path) -> None:
    path = save(tmp_path, [node("Abs", ["x"], ["y"])])
    largest = np.finfo(np.float32).max
    batch = {"x": np.full((1, 3, 4, 4), largest, np.float32)}
    assert collect_ranges(path, lambda: [batch], ["y"], method="minmax").tensors["y"].amax == largest


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("empty", [(0, 3, 4, 4), (1, 3, 0, 4)])
def test_an_empty_batch_changes_nothing(tmp_path: Path, method: Method, empty: tuple[int, ...]) -> None:
    path = save(tmp_path, [node("Sin", ["x"], ["s"]), node("Relu", ["s"], ["y"])])
    full = noise((2, 3, 4, 4))
    with_empty = collect_ranges(path, lambda: [*full, *noise(empty)], ["s", "y"], method=method)
    assert with_empty.tensors == collect_ranges(path, lambda: full, ["s", "y"], method=method).tensors


@pytest.mark.parametrize("case", ["an input alone", "integers", "float64", "opset 9"])
def test_other_models_have_their_tensors_handed_out(tmp_path: Path, case: str) -> None:
    if case == "integers":
        path, names = save(tmp_path, [node("Shape", ["x"], ["y"])]), ["y"]
    elif case == "float64":
        path, names = save(tmp_path, [node("Abs", ["x"], ["y"])], dtype=TensorProto.DOUBLE), ["y"]
    else:
        opset = 9 if case == "opset 9" else 17
        path, names = save(tmp_path, [node("Abs", ["x"], ["y"])], opset=opset), ["x" if opset > 9 else "y"]
    assert open_reductions(path, names, 0, 512, sample=True) is None


def test_double_precision_and_an_old_opset_still_calibrate(tmp_path: Path) -> None:
    for kind, opset in ((np.float64, 18), (np.float32, 9)):
        dtype = helper.np_dtype_to_tensor_dtype(np.dtype(kind))
        path = save(tmp_path, [node("Abs", ["x"], ["y"])], opset=opset, dtype=dtype)
        batches = [{"x": np.full((1, 3, 2, 2), -2, kind)}]
        assert collect_ranges(path, lambda given=batches: given, ["y"], method="minmax").tensors["y"].amax == 2


def test_onnx_runtimes_own_extremes_pass_over_nan() -> None:
    """Why sums are asked for, too. Should this ever fail, the third reduction of every tensor can go."""
    kinds = {"ReduceMax": [], "ReduceSum": []}
    for kind, lost in kinds.items():
        graph = helper.make_graph(
            [node(kind, ["x"], ["y"], keepdims=0)], "one", [helper.make_tensor_value_info("x", 1, ["n"])],
            [helper.make_tensor_value_info("y", 1, [])],
        )  # fmt: skip
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        for at in range(64):
            array = np.ones(64, np.float32)
            array[at] = np.nan
            if not np.isnan(session.run(None, {"x": array})[0]):
                lost.append(at)
    assert not kinds["ReduceSum"]
    assert kinds["ReduceMax"]
