"""Real engines on a real GPU: TensorRT-RTX built for the GPU of this host, run, and compared with ONNX Runtime or NumPy."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from engineworks.engines.backends import tensorrt_rtx
from engineworks.engines.backends._cuda import DeviceBuffer, DeviceMemory, DeviceMemoryError, memory_mib
from engineworks.engines.backends.base import BuildRequest, Serving
from engineworks.errors import RunError
from engineworks.host.gpu import first_gpu
from engineworks.tensors import InputRange, Profile

pytestmark = pytest.mark.gpu

WIDTH = 64
MODES = [Serving(graphs, kernels) for graphs in (False, True) for kernels in ("lazy", "eager", "none")]  # type: ignore[arg-type]
Build = Callable[..., Path]
Arrays = Mapping[str, NDArray[Any]]


@pytest.fixture(scope="session")
def capability() -> str:
    gpu = first_gpu()
    assert gpu is not None, "there is no NVIDIA GPU here"
    return gpu.compute_capability


@pytest.fixture
def build(tmp_path: Path, capability: str) -> Build:
    """Nodes, inputs, outputs and weights → an engine for this GPU."""

    def build(
        nodes: list[Any], inputs: Any, outputs: Any, profiles: tuple[Profile, ...], weights: Arrays | None = None
    ) -> Path:
        graph = helper.make_graph(
            nodes, "g",
            [helper.make_tensor_value_info(n, t, s) for n, t, s in inputs],
            [helper.make_tensor_value_info(n, t, s) for n, t, s in outputs],
            [numpy_helper.from_array(a, n) for n, a in (weights or {}).items()],
        )  # fmt: skip
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
        onnx.save(model, tmp_path / "model.onnx")
        out = tmp_path / "out"
        out.mkdir(exist_ok=True)
        request = BuildRequest(tmp_path / "model.onnx", out, "fp32", profiles, (capability,))
        lines: list[str] = []
        return out / tensorrt_rtx.build(request, lines.append).file

    return build


def ranges(*triples: tuple[int, int, int], name: str = "x", rest: tuple[int, ...] = (WIDTH,)) -> tuple[Profile, ...]:
    """One profile per (min, opt, max) of the first dimension."""
    return tuple(
        Profile(str(i), {name: InputRange((a, *rest), (b, *rest), (c, *rest))}) for i, (a, b, c) in enumerate(triples)
    )


@pytest.fixture
def perceptron(build: Build) -> tuple[Path, Callable[[NDArray[Any]], NDArray[Any]]]:
    """Two matrix products, two overlapping profiles; and the same in NumPy."""
    random = np.random.default_rng(0)
    a, b = (random.normal(0, 0.2, (WIDTH, WIDTH)).astype(np.float32) for _ in range(2))
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["h"]), helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "b"], ["y"]),
    ]  # fmt: skip
    float_ = TensorProto.FLOAT
    engine = build(
        nodes, [("x", float_, ["n", WIDTH])], [("y", float_, ["n", WIDTH])], ranges((1, 8, 16), (16, 64, 256)),
        {"a": a, "b": b},
    )  # fmt: skip
    return engine, lambda x: np.maximum(x @ a, 0) @ b


def rows(count: int, seed: int = 0) -> dict[str, NDArray[Any]]:
    return {"x": np.random.default_rng(seed).normal(size=(count, WIDTH)).astype(np.float32)}


@pytest.mark.parametrize("serving", MODES, ids=lambda s: f"{s.kernels}{'+graph' if s.cuda_graphs else ''}")
def test_outputs_are_right_in_every_mode_up_and_down_and_again(perceptron: Any, serving: Serving) -> None:
    engine, exact = perceptron
    session = tensorrt_rtx.load(engine, {}, serving=serving)
    for visit in range(3):
        for count in (8, 16, 1, 256, 17, 5, 256, 1):
            given = rows(count, visit)
            for _ in range(12):
                found = session.run(given)["y"]
                assert np.allclose(found, exact(given["x"]), rtol=1e-4, atol=1e-4), (visit, count)
    session.close()


def test_a_row_is_the_same_wherever_it_stands(perceptron: Any) -> None:
    engine, _ = perceptron
    session = tensorrt_rtx.load(engine, {})
    given = rows(64)["x"]
    together = session.run({"x": given})["y"]
    turned = session.run({"x": given[::-1].copy()})["y"][::-1]
    alone = np.concatenate([session.run({"x": given[i : i + 1]})["y"] for i in range(64)])
    assert np.allclose(together, turned, rtol=1e-5, atol=1e-5)
    assert np.allclose(together, alone, rtol=1e-4, atol=1e-4)


def test_a_shape_outside_every_profile_is_refused_and_the_session_goes_on(perceptron: Any) -> None:
    engine, exact = perceptron
    session = tensorrt_rtx.load(engine, {})
    with pytest.raises(RunError, match="lies outside every profile"):
        session.run(rows(257))
    assert np.allclose(session.run(rows(2))["y"], exact(rows(2)["x"]), atol=1e-4)


@pytest.mark.parametrize(
    ("onnx_type", "dtype"),
    [
        (TensorProto.FLOAT, np.dtype(np.float32)), (TensorProto.FLOAT16, np.dtype(np.float16)),
        (TensorProto.BFLOAT16, np.dtype(ml_dtypes.bfloat16)), (TensorProto.INT64, np.dtype(np.int64)),
        (TensorProto.INT32, np.dtype(np.int32)), (TensorProto.BOOL, np.dtype(np.bool_)),
        (TensorProto.UINT8, np.dtype(np.uint8)),
    ],
)  # fmt: skip
def test_every_dtype_goes_in_and_out(build: Build, onnx_type: int, dtype: Any) -> None:
    if onnx_type == TensorProto.BOOL:
        nodes = [helper.make_node("Not", ["x"], ["y"])]
    elif onnx_type == TensorProto.UINT8:  # TensorRT takes and gives uint8, and computes with something else
        nodes = [
            helper.make_node("Cast", ["x"], ["f"], to=TensorProto.FLOAT), helper.make_node("Add", ["f", "f"], ["g"]),
            helper.make_node("Cast", ["g"], ["y"], to=TensorProto.UINT8),
        ]  # fmt: skip
    else:
        nodes = [helper.make_node("Add", ["x", "x"], ["y"])]
    shape = [("x", onnx_type, ["n", WIDTH])], [("y", onnx_type, ["n", WIDTH])]
    session = tensorrt_rtx.load(build(nodes, *shape, ranges((1, 4, 8))), {})
    given = (np.arange(3 * WIDTH).reshape(3, WIDTH) % 100).astype(dtype)
    found = session.run({"x": given})["y"]
    wanted = ~given if onnx_type == TensorProto.BOOL else given + given
    assert found.dtype == dtype
    assert np.array_equal(found, wanted)


def test_outputs_whose_shape_depends_on_the_data_come_whole(build: Build) -> None:
    """0, 1, … up to the largest of x: TensorRT-RTX has no NonZero, Compress or NonMaxSuppression."""
    int_ = TensorProto.INT64
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["m"], keepdims=0), helper.make_node("Range", ["zero", "m", "one"], ["y"]),
    ]  # fmt: skip
    numbers = {"zero": np.array(0, np.int64), "one": np.array(1, np.int64)}
    engine = build(nodes, [("x", int_, ["n"])], [("y", int_, ["m"])], ranges((1, 4, 64), rest=()), numbers)
    session = tensorrt_rtx.load(engine, {}, serving=Serving(cuda_graphs=True))
    for largest in (4, 64, 1, 7, 0, 1000):
        given = np.array([0, largest, 0], np.int64)
        assert session.run({"x": given})["y"].tolist() == list(range(largest))
    assert "the shape of an output depends on the data" in session.notes[0]


def test_the_runtime_cache_is_made_and_used(perceptron: Any, tmp_path: Path) -> None:
    engine, exact = perceptron
    first = tensorrt_rtx.load(engine, {}, cache=tmp_path / "cache")
    first.run(rows(8))
    assert first.facts["runtime_cache"] == "new"
    first.close()
    second = tensorrt_rtx.load(engine, {}, cache=tmp_path / "cache")
    assert second.facts["runtime_cache"] == "reused"
    assert np.allclose(second.run(rows(8))["y"], exact(rows(8)["x"]), atol=1e-4)


def test_a_damaged_runtime_cache_is_refused_and_replaced(perceptron: Any, tmp_path: Path) -> None:
    engine, exact = perceptron
    (tmp_path / "runtime.cache").write_bytes(b"not a cache" * 100)
    session = tensorrt_rtx.load(engine, {}, cache=tmp_path)
    assert session.facts["runtime_cache"] == "refused"
    assert np.allclose(session.run(rows(8))["y"], exact(rows(8)["x"]), atol=1e-4)
    session.close()
    assert tensorrt_rtx.load(engine, {}, cache=tmp_path).facts["runtime_cache"] == "reused"


def test_both_clocks_agree_on_the_order_of_things(perceptron: Any) -> None:
    session = tensorrt_rtx.load(perceptron[0], {})
    times = session.time_runs(rows(256), 200)
    copies = session.time_runs(rows(256), 200, copies=True)
    assert 0 < np.median(times.device_ms) < 1.05 * np.median(times.host_ms)
    assert np.median(copies.device_ms) > np.median(times.device_ms)


def test_streams_bring_throughput(perceptron: Any) -> None:
    session = tensorrt_rtx.load(perceptron[0], {})
    assert session.throughput(rows(4), 3, 0.3) > 100
    assert session.run(rows(4))["y"].shape == (4, WIDTH)


def test_what_a_session_takes_is_given_back(perceptron: Any) -> None:
    meter = DeviceMemory()
    session = tensorrt_rtx.load(perceptron[0], {})
    session.run(rows(8))
    session.close()  # the first load of a process also loads libraries
    before = meter.peak_mib()
    for _ in range(3):
        session = tensorrt_rtx.load(perceptron[0], {})
        session.run(rows(256))
        session.close()
    assert meter.peak_mib() - before < 64


def test_a_truncated_or_foreign_engine_is_refused(perceptron: Any, tmp_path: Path) -> None:
    whole = perceptron[0].read_bytes()
    for data in (whole[: len(whole) // 2], b"vtrt" + os.urandom(4096), b"onnx" * 100):
        (tmp_path / "bad").write_bytes(data)
        with pytest.raises(RunError, match="engine"):
            tensorrt_rtx.load(tmp_path / "bad", {})


def test_no_room_on_the_gpu_is_one_message_and_smaller_shapes_still_run(build: Build) -> None:
    wide = 1 << 20
    nodes = [helper.make_node("Expand", ["x", "to"], ["w"]), helper.make_node("Add", ["w", "w"], ["y"])]
    float_ = TensorProto.FLOAT
    engine = build(
        nodes, [("x", float_, ["n", 1])], [("y", float_, ["n", wide])], ranges((1, 1, 256), rest=(1,)),
        {"to": np.array([1, wide], np.int64)},
    )  # fmt: skip
    session, ballast = tensorrt_rtx.load(engine, {}), DeviceBuffer()
    session.run({"x": np.ones((1, 1), np.float32)})
    ballast.ensure(int((memory_mib()[0] - 512) * 2**20))
    try:
        with pytest.raises(DeviceMemoryError, match="out of memory"):
            session.run({"x": np.ones((256, 1), np.float32)})
        assert session.run({"x": np.ones((2, 1), np.float32)})["y"].max() == 2
    finally:
        ballast.free()
