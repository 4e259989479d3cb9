"""ONNX Runtime's CUDA provider, with a fake of its module: what it is asked for, and what is refused."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from engineworks.engines.backends import _ort_session
from engineworks.engines.peers import ort_cuda
from engineworks.engines.peers.base import PeerModel
from engineworks.errors import RunError

CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
MISSING = (
    "2026-11-21 [E:onnxruntime:Default, provider_bridge_ort.cc:2251 TryGetProviderInfo_CUDA] /ort/provider_bridge.cc:1 "
    "Failed to load library libonnxruntime_providers_cuda.so with error: libcudnn.so.9: cannot open shared object "
    "file: No such file or directory\n"
)
DRIVER = "2026-11-21 [E:onnxruntime:, x.cc:1] CUDA failure 35: CUDA driver version is insufficient ; GPU=-1\n"
MODEL = PeerModel("fp32", onnx=Path("model.onnx"))
VALUE = SimpleNamespace(is_tensor=lambda: True, data_type=lambda: "tensor(float)")


class FakeBinding:
    def __init__(self, calls: list[Any]) -> None:
        self._calls = calls

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            self._calls.append((name, *arguments))
            return [VALUE] if name == "get_outputs" else None

        return call


class FakeSession:
    """y = x + 1. `state` says which providers it gets, what it logs, and where its nodes go."""

    def __init__(self, state: dict[str, Any], path: str, options: Any, providers: Any, enable_fallback: int) -> None:
        self.state = state | {"path": path, "options": options, "asked": providers, "fallback": enable_fallback}
        state.update(self.state)
        os.write(2, state["log"].encode())

    def get_providers(self) -> list[str]:
        return list(self.state["providers"])

    def get_provider_options(self) -> dict[str, dict[str, str]]:
        return {CUDA: {"use_tf32": "0", "device_id": "0", "gpu_mem_limit": "1"}}

    def get_provider_graph_assignment_info(self) -> list[Any]:
        parts: dict[str, list[str]] = self.state["nodes"]
        return [
            SimpleNamespace(
                ep_name=ep, get_nodes=lambda names=names: [SimpleNamespace(op_type="Add", name=n) for n in names]
            )
            for ep, names in parts.items()
        ]

    def get_inputs(self) -> list[Any]:
        return [SimpleNamespace(name="x", type="tensor(float)", shape=["batch", 2])]

    def get_outputs(self) -> list[Any]:
        return [SimpleNamespace(name="y", type="tensor(float)", shape=["batch", 2])]

    def run(self, names: list[str], feeds: dict[str, Any]) -> list[Any]:
        self.state["calls"].append(("run", tuple(names)))
        if self.state["fails"]:
            raise RuntimeError("[ONNXRuntimeError] : 1 : FAIL : CUDA failure 2: out of memory")
        return [feeds["x"] + 1]

    def io_binding(self) -> FakeBinding:
        return FakeBinding(self.state["calls"])

    def run_with_iobinding(self, binding: Any) -> None:
        self.state["calls"].append(("run_with_iobinding",))


@pytest.fixture
def state(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    found: dict[str, Any] = {
        "providers": [CUDA, CPU], "log": "", "nodes": {CUDA: ["a", "b"]}, "calls": [], "fails": False,
        "available": [CUDA, CPU],
    }  # fmt: skip
    fake: Any = ModuleType("onnxruntime")
    fake.__version__ = "1.31.1"
    fake.get_available_providers = lambda: found["available"]
    fake.SessionOptions = lambda: SimpleNamespace(add_session_config_entry=lambda key, value: None)
    fake.InferenceSession = lambda path, options, **rest: FakeSession(found, path, options, **rest)
    fake.OrtValue = SimpleNamespace(ortvalue_from_numpy=lambda array, device, index: ("on", device, index, array.shape))
    monkeypatch.setitem(sys.modules, "onnxruntime", fake)
    for module in (ort_cuda, _ort_session):
        monkeypatch.setattr(module, "ort_errors", lambda: (RuntimeError, ValueError))
    return found


X = {"x": np.zeros((1, 2), np.float32)}


def test_tf32_is_off_and_no_fallback_is_wanted(state: dict[str, Any]) -> None:
    session = ort_cuda.load(MODEL)
    assert state["asked"] == [(CUDA, {"device_id": "0", "use_tf32": "0"}), CPU]
    assert state["fallback"] == 0
    assert session.facts["tf32"] is False
    assert session.facts["provider_options"] == {"use_tf32": "0", "device_id": "0"}
    assert session.notes == ()


def test_a_silent_fallback_names_the_missing_library(state: dict[str, Any], capfd: pytest.CaptureFixture[str]) -> None:
    state.update(providers=[CPU], log=MISSING)
    with pytest.raises(RunError) as caught:
        ort_cuda.load(MODEL)
    assert str(caught.value) == (
        "ONNX Runtime cannot use the GPU: libcudnn.so.9 is not found; "
        "install the CUDA and cuDNN packages of its version, or add their folder to LD_LIBRARY_PATH"
    )
    assert caught.value.log == MISSING
    assert capfd.readouterr().err == MISSING


def test_another_silent_fallback_says_what_was_logged(state: dict[str, Any]) -> None:
    state.update(providers=[CPU], log=DRIVER)
    with pytest.raises(RunError, match="CPU, not on the GPU: CUDA failure 35: CUDA driver version is insufficient"):
        ort_cuda.load(MODEL)
    state.update(log="")
    with pytest.raises(RunError, match="it does not say why"):
        ort_cuda.load(MODEL)


def test_a_package_without_cuda_is_refused(state: dict[str, Any]) -> None:
    state.update(available=[CPU])
    with pytest.raises(RunError, match=r"ONNX Runtime 1\.31\.1 has no CUDAExecutionProvider; pip install"):
        ort_cuda.load(MODEL)


def test_nodes_on_the_cpu_are_counted_and_named(state: dict[str, Any]) -> None:
    state.update(nodes={CUDA: list("abc"), CPU: list("wxyz")})
    session = ort_cuda.load(MODEL)
    assert session.notes == ("4 of 7 nodes run on the CPU: Add (w), Add (x), Add (y) and 1 more",)
    assert session.facts["nodes"] == {CUDA: 3, CPU: 4}
    state.update(nodes={CPU: ["a"]})
    with pytest.raises(RunError, match="every node of this model on the CPU"):
        ort_cuda.load(MODEL)


def test_timed_runs_copy_nothing_unless_asked(state: dict[str, Any]) -> None:
    session = ort_cuda.load(MODEL)
    assert len(session.time_runs(X, 3).host_ms) == 3
    once = ["run_with_iobinding", "synchronize_outputs"]
    assert [call[0] for call in state["calls"]] == [
        "bind_ortvalue_input", "bind_output", "run_with_iobinding", "get_outputs", "clear_binding_outputs",
        "bind_ortvalue_output", *once * 3,
    ]  # fmt: skip
    assert state["calls"][0] == ("bind_ortvalue_input", "x", ("on", "cuda", 0, (1, 2)))
    assert state["calls"][1] == ("bind_output", "y", "cuda", 0)
    assert state["calls"][5] == ("bind_ortvalue_output", "y", VALUE)
    state["calls"].clear()
    assert len(session.time_runs(X, 2, copies=True).host_ms) == 2
    assert [call[0] for call in state["calls"]] == ["run", "run"]


def test_runs_give_every_output_and_failures_are_one_sentence(state: dict[str, Any]) -> None:
    session = ort_cuda.load(MODEL)
    assert session.run(X)["y"].tolist() == [[1.0, 1.0]]
    with pytest.raises(RunError, match="input 'x' is float64, the engine takes float32"):
        session.run({"x": np.zeros((1, 2))})
    session._session.state["fails"] = True
    with pytest.raises(RunError, match=r"^ONNX Runtime failed at x \[1, 2\]: CUDA failure 2: out of memory$"):
        session.run(X)
    session.close()
    with pytest.raises(RunError, match="was closed"):
        session.run(X)
