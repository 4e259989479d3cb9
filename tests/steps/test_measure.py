"""The measure step whole: on the CPU with a real engine, and with a backend that the test makes up."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from conftest import tiny_model

from engineworks.engines.backends.base import RunTimes, Serving
from engineworks.errors import RunError
from engineworks.measure.layers import Layers
from engineworks.steps import measure
from engineworks.steps.device_readings import DeviceReadings
from engineworks.steps.job import StepJob
from engineworks.tensors import TensorSpec
from tests.typed_reports import write_sidecar

if TYPE_CHECKING:
    from engineworks.engines.backends.base import Arrays

INPUT = TensorSpec("image", "float32", ("batch", 1, 4, 4))
CPU = {"backend": "onnxruntime", "compute_capability": [], "options": {"threads": 1}}


def job(folder: Path, **params: Any) -> StepJob:
    (folder / "build").mkdir()
    (folder / "out").mkdir()
    (folder / "lower").mkdir()
    for file in ("build/engine", "lower/model.onnx"):
        onnx.save(tiny_model(), folder / file)
    outputs = (TensorSpec("logits", "float32", ("batch", 3)),)
    write_sidecar(folder / "build", bytes=2**20, inputs=(INPUT,), outputs=outputs)
    np.savez(folder / "data.npz", image=np.ones((3, 1, 4, 4), np.float32))
    samples = {"arrays": {"image": "image"}, "count": 3, "total": 3, "specs": [INPUT.to_json()]}
    given = {
        "at": {"bulk": shape(16), "one": shape(1)}, "sweep": [{"batch": b, **shape(b)} for b in (1, 4)],
        "streams": [], "serving": Serving().to_json(), "inputs": [INPUT.to_json()], "samples": samples, "target": CPU,
    }  # fmt: skip
    unkeyed = {"evaluation": str(folder / "data.npz")}
    return StepJob("t/fp32/cpu/measure", given | params, _inputs(folder), unkeyed, folder / "out", print)


def _inputs(folder: Path) -> dict[str, Path]:
    return {"build": folder / "build", "lower": folder / "lower"}


def shape(batch: int) -> dict[str, Any]:
    return {"dims": {"batch": batch}, "profile": "default", "tail": False}


def report_of(step: StepJob) -> Any:
    measure.run(step)
    return json.loads((step.out / "latency.json").read_text(encoding="utf-8"))


def test_on_a_cpu_every_shape_and_batch_has_its_figures(tmp_path: Path) -> None:
    report = report_of(job(tmp_path, streams=[2], serving=Serving(cuda_graphs=True).to_json()))
    assert list(report["shapes"]) == ["bulk", "one"]
    for values in report["shapes"].values():
        assert values["latency_ms_p50"] > 0
        assert values["first_run_ms"] > 0
        assert values["device_ms_p50"] is values["copies_ms_p50"] is None
        assert [s["streams"] for s in values["streams"]] == [2]
        assert values["streams"][0]["runs_per_s"] > 0
        assert len(values["samples"]) == values["runs"]
    assert [(p["batch"], p.get("shape")) for p in report["sweep"]] == [(1, "one"), (4, None)]
    assert report["sweep"][1]["streams"] == []
    assert report["engine_mib"] == 1.0
    layers = Layers.read(tmp_path / "out")
    assert (layers.shape, layers.why) == ("bulk", "")
    assert "conv" in {node for layer in layers.layers for node in layer.nodes}
    assert report["memory_total_mib"] > 100
    assert report["serving"]["cuda_graphs"] is True
    assert any("CUDA graphs" in note for note in report["notes"])
    places = {r["at"] for r in report["device"]["readings"]}
    assert places <= {"while loading", "one", "bulk", "batch 4", "at the end"}


class FakeDevice:
    """A backend's session, meter and watch in one: memory grows with the batch, batches over 8 do not fit, and another
    process is seen while batches of 4 run."""

    inputs: Sequence[TensorSpec] = (INPUT,)
    outputs: Sequence[TensorSpec] = ()
    notes: Sequence[str] = ("the CUDA graph could not be captured",)
    facts: Mapping[str, object] = {"kernels": "eager"}

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.batch, self.used_mib, self.loaded = 0.0, 0, 500.0, dict[str, Any]()
        self.caches: list[Path | None] = []
        monkeypatch.setattr(time, "monotonic", lambda: self.now)
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)
        monkeypatch.setattr(measure, "runner_of", lambda target: self)
        monkeypatch.setattr(measure, "load_verified", self.load)

    def load(self, engine: object, target: object, *, serving: Serving, cache: Path | None) -> FakeDevice:
        self.loaded = {"serving": serving, "cache": cache}
        self.caches.append(cache)
        assert cache is None or cache == Path("/c") or not any(cache.iterdir())
        self.used_mib += 100
        self.now += 0.02
        return self

    def run(self, feeds: Arrays) -> dict[str, Any]:
        self.batch = len(feeds["image"])
        if self.batch > 8:
            raise RunError(f"out of memory at batch {self.batch}")
        self.used_mib = max(self.used_mib, 600.0 + self.batch)
        self.now += 0.01
        return {}

    def time_runs(self, feeds: Arrays, runs: int, *, copies: bool = False) -> RunTimes:
        each = 1.0 + 0.1 * self.batch
        self.now += runs * each / 1000
        return RunTimes((each,) * runs, (each - 0.5,) * runs)

    def throughput(self, feeds: Arrays, streams: int, seconds: float) -> float:
        raise RunError("no streams")

    def close(self) -> None: ...

    def memory_meter(self) -> FakeDevice:
        return self

    def device_watch(self) -> FakeDevice:
        return self

    def reset(self) -> None: ...

    def peak_mib(self) -> float:
        return self.used_mib

    def total_mib(self) -> float:
        return 8000.0

    def sample(self) -> Mapping[str, object]:
        return {"processes": 2 if self.batch == 4 else 1}

    def complaints(self, readings: Sequence[Mapping[str, object]]) -> Sequence[str]:
        return ["another process used the GPU"] if any(r["processes"] == 2 for r in readings) else []


def test_memory_is_the_difference_that_the_engine_makes_at_each_shape(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    FakeDevice(monkeypatch)
    report = report_of(job(tmp_path, at={"some": shape(6), "one": shape(1)}, sweep=[{"batch": 4, **shape(4)}]))
    assert {n: s["memory_mib"] for n, s in report["shapes"].items()} == {"some": 106.0, "one": 101.0}
    assert report["sweep"][0]["memory_mib"] == 104.0
    assert report["load_ms"] == pytest.approx(20)
    assert report["facts"] == {"kernels": "eager"}
    assert report["notes"] == ["the CUDA graph could not be captured"]


def test_a_batch_that_does_not_fit_is_a_point_with_its_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    FakeDevice(monkeypatch)
    report = report_of(job(tmp_path, at={"one": shape(1)}, sweep=[{"batch": b, **shape(b)} for b in (2, 16)]))
    assert [p.get("error") for p in report["sweep"]] == [None, "out of memory at batch 16"]


def test_a_named_shape_that_does_not_fit_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    FakeDevice(monkeypatch)
    with pytest.raises(RunError, match="out of memory at batch 16"):
        measure.run(job(tmp_path, at={"bulk": shape(16)}, sweep=[]))


def test_complaints_stand_with_the_shape_that_they_are_about(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    FakeDevice(monkeypatch)
    report = report_of(job(tmp_path, at={"one": shape(1), "four": shape(4)}, sweep=[]))
    assert report["shapes"]["one"]["complaints"] == report["load_complaints"] == []
    assert report["shapes"]["four"]["complaints"] == ["another process used the GPU"]
    assert "four: another process used the GPU" in report["device"]["complaints"]


def test_the_engine_is_served_as_the_recipe_says_with_the_cache_that_the_plan_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = FakeDevice(monkeypatch)
    step = job(tmp_path, at={"one": shape(1)}, sweep=[], serving={"cuda_graphs": True, "kernels": "eager"})
    measure.run(StepJob(step.id, step.params, step.inputs, {**step.unkeyed, "cache": "/c"}, step.out, print))
    assert device.loaded == {"serving": Serving(cuda_graphs=True, kernels="eager"), "cache": Path("/c")}
    new, *loads = device.caches
    assert new not in (None, Path("/c")), "what earlier sessions left there is no part of the figures"
    assert loads == [None, Path("/c"), Path("/c")]


def test_a_backend_without_a_cache_gets_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    device = FakeDevice(monkeypatch)
    measure.run(job(tmp_path, at={"one": shape(1)}, sweep=[]))
    assert device.caches == [None]


def test_specialized_kernels_are_waited_for_only_where_they_come_later() -> None:
    lazy, eager = (measure.sampling_of({"kernels": k}, tail=True) for k in ("lazy", "eager"))
    assert lazy.watch_s > 4 * eager.watch_s
    assert lazy.tail
    assert eager.tail
    assert measure.sampling_of({}, tail=False).watch_s == eager.watch_s


class Counting:
    def __init__(self) -> None:
        self.count = 0

    def sample(self) -> Mapping[str, object]:
        self.count += 1
        return {"n": self.count}

    def complaints(self, readings: Sequence[Mapping[str, object]]) -> Sequence[str]:
        return [f"{len(readings)} readings"]


def test_readings_keep_their_distance_within_a_place(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    readings = DeviceReadings(Counting())
    readings.take("a")
    readings.take("a", 0.2)
    readings.take("b", 0.2)
    now[0] = 0.3
    readings.take("a", 0.2)
    readings.take("a")
    found = readings.to_json()
    assert [(r["at"], r["s"], r["n"]) for r in found["readings"]] == [
        ("a", 0, 1),
        ("b", 0, 2),
        ("a", 0.3, 3),
        ("a", 0.3, 4),
    ]
    assert found["complaints"] == ["a: 3 readings", "b: 1 readings"]


class Blind:
    def sample(self) -> Mapping[str, object]:
        return {}

    def complaints(self, readings: Sequence[Mapping[str, object]]) -> Sequence[str]:
        return ["the state of the device is unknown"]


def test_a_watch_that_sees_nothing_is_heard() -> None:
    readings = DeviceReadings(Blind())
    readings.take("one")
    assert readings.complaints("one") == ["the state of the device is unknown"]
    assert readings.to_json() == {"readings": [], "complaints": ["one: the state of the device is unknown"]}
