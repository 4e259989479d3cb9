"""The step of a peer: figures of the form of an engine's, and its outputs compared with the reference."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from conftest import tiny_model

from engineworks.engines.peers import ort_cpu
from engineworks.engines.peers.base import PeerModel
from engineworks.errors import InputError, RunError
from engineworks.measure.latency import Sampling
from engineworks.steps import measure, peer, reference
from engineworks.steps.job import StepJob

SPEC = {"name": "image", "dtype": "float32", "shape": ["batch", 1, 4, 4]}
SAMPLES = {"arrays": {"image": "image"}, "count": 10, "total": 10, "specs": [SPEC]}
PARAMS: dict[str, Any] = {
    "peer": "ort-cpu", "sweep": [], "streams": [], "precision": "fp32", "inputs": [SPEC], "samples": SAMPLES, "batches": [1, 4],
    "at": {"one": {"dims": {"batch": 1}, "tail": False}, "four": {"dims": {"batch": 4}, "tail": False}},
}  # fmt: skip


def job(folder: Path, *, seed: int = 0, **params: Any) -> StepJob:
    """The peer runs a model of this seed; the reference comes from seed 0."""
    for name in ("fold", "model", "reference", "out"):
        (folder / name).mkdir()
    onnx.save(tiny_model(), folder / "fold" / "model.onnx")
    onnx.save(tiny_model(seed), folder / "model" / "model.onnx")
    np.savez(folder / "data.npz", image=np.random.default_rng(1).normal(0, 1, (10, 1, 4, 4)).astype(np.float32))
    unkeyed = {"evaluation": str(folder / "data.npz")}
    values = {"samples": SAMPLES, "batches": [1, 4]}
    reference.run(StepJob("r", values, {"fold": folder / "fold"}, unkeyed, folder / "reference", lambda _: None))
    inputs = {"model": folder / "model", "reference": folder / "reference"}
    return StepJob("tiny/peer/x", {**PARAMS, **params}, inputs, unkeyed, folder / "out", lambda _: None)


def report(done: StepJob) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((done.out / "latency.json").read_text(encoding="utf-8"))
    return found


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tenth of a second per shape is enough: no figure is looked at here."""
    monkeypatch.setattr(measure, "sampling_of", lambda facts, tail: Sampling(watch_s=0.02, max_s=0.1, tail=tail))


def test_a_peer_is_measured_at_every_shape_and_compared(tmp_path: Path) -> None:
    done = job(tmp_path)
    peer.run(done)
    found = report(done)
    assert list(found["shapes"]) == ["one", "four"]
    for values in found["shapes"].values():
        assert values["latency_ms_p50"] > 0
        assert values["first_run_ms"] > 0
        assert values["memory_mib"] >= 0
        assert values["device_ms_p50"] is None
    assert found["shapes"]["four"]["dims"] == {"batch": 4}
    assert found["load_ms"] > 0
    assert found["import_ms"] >= 0
    assert found["outputs"]["logits"]["cosine"] == pytest.approx(1.0)
    assert found["outputs"]["logits"]["elements"] == 30  # every sample


def test_a_peer_that_computes_something_else_is_seen(tmp_path: Path) -> None:
    done = job(tmp_path, seed=5)
    peer.run(done)
    assert report(done)["outputs"]["logits"]["cosine"] < 0.9


def test_a_peer_that_fails_writes_nothing_and_closes_its_session(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = []

    def load(model: PeerModel) -> Any:
        session = load_really(model)
        monkeypatch.setattr(session, "time_runs", broken)
        monkeypatch.setattr(session, "close", lambda: closed.append(True))
        return session

    def broken(*_: Any, **__: Any) -> Any:
        raise RunError("out of memory")

    load_really = ort_cpu.load
    monkeypatch.setattr(ort_cpu, "load", load)
    done = job(tmp_path)
    with pytest.raises(RunError, match="out of memory"):
        peer.run(done)
    assert closed == [True]
    assert list(done.out.iterdir()) == []


def test_outputs_of_another_shape_can_not_be_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer, "read_reference", lambda folder: iter([{"logits": np.zeros((7, 7), np.float32)}] * 4))
    with pytest.raises(RunError, match=r"output 'logits' cannot be compared with the reference: .*\[1, 3\]"):
        peer.run(job(tmp_path))


def test_an_unknown_peer_is_bad_input(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="unknown peer 'ort-gpu'"):
        peer.run(job(tmp_path, peer="ort-gpu"))
