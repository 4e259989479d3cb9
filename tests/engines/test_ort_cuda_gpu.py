"""ONNX Runtime's CUDA provider on a real GPU: outputs right, TF32 really off, nothing on the CPU in silence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from engineworks.engines.peers import ort_cuda
from engineworks.engines.peers.base import PeerModel
from engineworks.errors import RunError

pytestmark = pytest.mark.gpu

WIDTH = 1024
X: dict[str, Any] = {"x": np.random.default_rng(0).normal(0, 1, (64, WIDTH)).astype(np.float32)}


@pytest.fixture(scope="module", autouse=True)
def _library() -> None:
    assert ort_cuda.why_not("onnx", "fp32") is None
    ort_cuda.open_library()


def weights() -> NDArray[np.float32]:
    return np.random.default_rng(1).normal(0, 0.05, (WIDTH, WIDTH)).astype(np.float32)


def product(folder: Path, *, half: bool = False) -> Path:
    """y = relu(x @ w); in fp16 between casts, as our lowering writes it."""
    dtype = TensorProto.FLOAT16 if half else TensorProto.FLOAT
    nodes = [
        helper.make_node("Cast", ["x"], ["a"], to=dtype),
        helper.make_node("MatMul", ["a", "w"], ["b"], name="product"),
        helper.make_node("Relu", ["b"], ["c"], name="relu"),
        helper.make_node("Cast", ["c"], ["y"], to=TensorProto.FLOAT),
    ]
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", WIDTH]) for n in "xy"]
    w = numpy_helper.from_array(weights().astype(np.float16 if half else np.float32), "w")
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], [w])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, folder / "model.onnx")
    return folder / "model.onnx"


def off_by(got: Any) -> float:
    wanted = np.maximum(X["x"].astype(np.float64) @ weights().astype(np.float64), 0)
    return float(np.abs(got - wanted).max() / np.abs(wanted).max())


def test_fp32_is_no_tf32_and_runs_on_the_gpu(tmp_path: Path) -> None:
    session = ort_cuda.load(PeerModel("fp32", onnx=product(tmp_path)))
    assert off_by(session.run(X)["y"]) < 2e-5  # TF32 is off by about 5e-4
    assert session.facts["provider_options"]["use_tf32"] == "0"  # type: ignore[index]
    assert session.notes == ()


def test_fp16_is_near(tmp_path: Path) -> None:
    session = ort_cuda.load(PeerModel("fp16", onnx=product(tmp_path, half=True)))
    assert 1e-6 < off_by(session.run(X)["y"]) < 0.01


def test_runs_are_timed_with_and_without_copies_and_stay_right(tmp_path: Path) -> None:
    session = ort_cuda.load(PeerModel("fp32", onnx=product(tmp_path)))
    without, copied = session.time_runs(X, 20), session.time_runs(X, 20, copies=True)
    assert len(without.host_ms) == len(copied.host_ms) == 20
    assert min(without.host_ms) > 0
    assert off_by(session.run(X)["y"]) < 2e-5
    smaller = {"x": X["x"][:3]}
    assert session.time_runs(smaller, 2).host_ms
    assert session.run(smaller)["y"].shape == (3, WIDTH)
    session.close()


def test_the_bound_outputs_are_the_right_ones(tmp_path: Path) -> None:
    session = ort_cuda.load(PeerModel("fp32", onnx=product(tmp_path)))
    binding = session._bind(X)
    session._session.run_with_iobinding(binding)
    binding.synchronize_outputs()
    (value,) = binding.get_outputs()
    assert value.device_name().lower() == "cuda"
    assert off_by(value.numpy()) < 2e-5


def test_memory_is_what_the_device_loses(tmp_path: Path) -> None:
    meter = ort_cuda.memory_meter()
    before = meter.peak_mib()
    session = ort_cuda.load(PeerModel("fp32", onnx=product(tmp_path)))
    session.time_runs(X, 2)
    assert meter.peak_mib() > before
    session.close()


def test_a_model_that_stays_on_the_cpu_is_refused(tmp_path: Path) -> None:
    """Strings have no place on a GPU."""
    node = helper.make_node("StringNormalizer", ["s"], ["t"], case_change_action="LOWER")
    values = [helper.make_tensor_value_info(n, TensorProto.STRING, [None]) for n in "st"]
    graph = helper.make_graph([node], "g", values[:1], values[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(RunError, match="every node of this model on the CPU"):
        ort_cuda.load(PeerModel("fp32", onnx=tmp_path / "model.onnx"))
