"""PyTorch eager on a real GPU: device times, memory of the whole device, TF32 really off."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engineworks.engines.peers import pytorch
from engineworks.engines.peers.base import Origin, PeerModel
from engineworks.model.export.interface import Interface
from engineworks.tensors import InputRange, Profile, TensorSpec

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.gpu

WIDTH = 1024
NET = f"""
import torch

def factory():
    return torch.nn.Sequential(torch.nn.Linear({WIDTH}, {WIDTH}), torch.nn.ReLU(), torch.nn.Linear({WIDTH}, {WIDTH}))
"""
X: dict[str, Any] = {"x": np.random.default_rng(0).normal(0, 1, (64, WIDTH)).astype(np.float32)}


@pytest.fixture(autouse=True)
def _gpu() -> Iterator[None]:
    assert torch.cuda.is_available(), "PyTorch finds no CUDA here"
    finders, path = list(sys.meta_path), list(sys.path)
    yield
    sys.meta_path[:], sys.path[:] = finders, path
    sys.modules.pop("net", None)


def model(folder: Path, precision: str) -> PeerModel:
    (folder / "net.py").write_text(NET, encoding="utf-8")
    ranges = {"x": InputRange((1, WIDTH), (64, WIDTH), (64, WIDTH))}
    spec = TensorSpec("x", "float32", ("batch", WIDTH))
    said = Interface((spec,), {"y": ("batch", WIDTH)}, (Profile("default", ranges),), 18)
    return PeerModel(precision, origin=Origin("torch", folder / "net.py", folder, (), "net:factory", None, said))


def exact(session: Any) -> Any:
    """The same in float64 by NumPy."""
    first, _, last = session._module
    weights = [
        (m.weight.double().cpu().detach().numpy(), m.bias.double().cpu().detach().numpy()) for m in (first, last)
    ]
    hidden = np.maximum(X["x"].astype(np.float64) @ weights[0][0].T + weights[0][1], 0)
    return hidden @ weights[1][0].T + weights[1][1]


def test_fp32_is_no_tf32(tmp_path: Path) -> None:
    session = pytorch.load(model(tmp_path, "fp32"))
    got, wanted = session.run(X)["y"], exact(session)
    assert np.abs(got - wanted).max() / np.abs(wanted).max() < 2e-5  # TF32 is off by about 5e-4
    assert session.facts["device"] == "cuda"


def test_half_is_near_and_every_run_has_both_times(tmp_path: Path) -> None:
    session = pytorch.load(model(tmp_path, "fp16"))
    got, wanted = session.run(X)["y"], exact(session)
    assert got.dtype == np.float16
    assert np.abs(got - wanted).max() / np.abs(wanted).max() < 0.01
    for copies in (False, True):
        times = session.time_runs(X, 5, copies=copies)
        assert len(times.host_ms) == len(times.device_ms) == 5
        assert all(0 < device <= host for device, host in zip(times.device_ms, times.host_ms, strict=True))


def test_the_meter_sees_what_the_device_loses() -> None:
    meter = pytorch.memory_meter()
    before = meter.peak_mib()
    block = torch.empty(256 << 20, dtype=torch.uint8, device="cuda")
    assert meter.peak_mib() - before >= 200
    del block
