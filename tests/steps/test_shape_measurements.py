"""All figures of a shape, of a session on a device whose clock the test drives: no real time is judged."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from engineworks.engines.backends.base import RunTimes, Session
from engineworks.errors import RunError
from engineworks.measure.latency import LAZY_KERNELS, Sampling
from engineworks.steps.shape_measurements import measure_shape
from engineworks.tensors import TensorSpec

if TYPE_CHECKING:
    from engineworks.engines.backends.base import Arrays

FEEDS = {"x": np.zeros((4, 2), np.float32)}


class FakeGpu:
    """Satisfies `Session`. Its kernels need 1 ms on the device, and 0.5 ms once `swapped_s` have passed; a run costs
    the host 0.1 ms more, the copies 0.3 ms; the first run and every call of `time_runs` set something up."""

    inputs: Sequence[TensorSpec] = (TensorSpec("x", "float32", ("batch", 2)),)
    outputs: Sequence[TensorSpec] = (TensorSpec("y", "float32", ("batch", 2)),)
    notes: Sequence[str] = ()
    facts: Mapping[str, object] = {"kernels": "lazy"}

    def __init__(self, monkeypatch: pytest.MonkeyPatch, swapped_s: float = 0.0, on_host: bool = False) -> None:
        self.now, self.swapped_s, self.on_host = 0.0, swapped_s, on_host
        self.set_up_s = 0.0005
        self.calls: list[bool] = []
        monkeypatch.setattr(time, "monotonic", lambda: self.now)
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)

    def run(self, feeds: Arrays) -> dict[str, Any]:
        self.now += 0.050
        return {"y": feeds["x"]}

    def time_runs(self, feeds: Arrays, runs: int, *, copies: bool = False) -> RunTimes:
        self.calls.append(copies)
        self.now += self.set_up_s
        host, device = [], []
        for _ in range(runs):
            device.append((0.5 if self.now >= self.swapped_s else 1.0) + (0.2 if copies else 0.0))
            host.append(device[-1] + (0.2 if copies else 0.1))
            self.now += host[-1] / 1000
        return RunTimes(tuple(host), () if self.on_host else tuple(device), self.on_host)

    def throughput(self, feeds: Arrays, streams: int, seconds: float) -> float:
        if streams > 2:
            raise RunError(f"{streams} streams do not fit into the memory")
        self.now += seconds
        return 1000.0 * streams

    def close(self) -> None: ...


def values(session: Session, sampling: Sampling = LAZY_KERNELS, streams: Sequence[int] = ()) -> dict[str, Any]:
    return measure_shape(
        session, FEEDS, 4, sampling=sampling, streams=streams, look=lambda spacing_s: None, peak_mib=lambda: 7.0,
        at_work=lambda: False,
    )  # fmt: skip


def test_host_device_and_copies_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    found = values(FakeGpu(monkeypatch))
    assert found["latency_ms_p50"] == found["latency_ms_p99"] == pytest.approx(0.6)
    assert found["device_ms_p50"] == found["device_ms_p99"] == pytest.approx(0.5)
    assert found["copies_ms_p50"] == pytest.approx(0.9)
    assert found["copies_device_ms_p50"] == pytest.approx(0.7)
    assert found["throughput_per_s"] == pytest.approx(4000 / 0.6)
    assert found["first_run_ms"] == pytest.approx(50)
    assert len(found["samples"]) == len(found["device_samples"]) == found["runs"]
    assert len(found["copies_samples"]) == len(found["copies_device_samples"]) >= 50
    assert found["peak_mib"] == 7.0


@pytest.mark.parametrize("swapped_s", [0.0, 0.4, 0.8, 1.2, 1.6, 2.0])
def test_measuring_costs_at_most_half_as_much_again_as_its_samples(
    monkeypatch: pytest.MonkeyPatch, swapped_s: float
) -> None:
    session = FakeGpu(monkeypatch, swapped_s)
    found = values(session)
    assert found["device_ms_p99"] == pytest.approx(0.5)
    assert found["seconds"] == pytest.approx(session.now, abs=0.001)
    samples_s = (sum(found["samples"]) + sum(found["copies_samples"]) + found["first_run_ms"]) / 1000
    assert found["cost_ratio"] == pytest.approx(found["seconds"] / samples_s, rel=0.01)
    assert 1.0 <= found["cost_ratio"] <= 1.5


def test_a_call_that_costs_much_to_set_up_is_made_for_more_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    session = FakeGpu(monkeypatch)
    session.set_up_s = 0.020
    assert values(session)["cost_ratio"] <= 1.2


def test_where_inputs_lie_on_the_host_nothing_is_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    session = FakeGpu(monkeypatch, on_host=True)
    found = values(session, Sampling())
    assert not any(session.calls)
    assert found["device_ms_p50"] is found["copies_ms_p50"] is found["copies_device_ms_p99"] is None
    assert found["copies_samples"] == found["device_samples"] == ()


def test_streams_give_throughputs_and_those_that_fail_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    found = values(FakeGpu(monkeypatch), streams=[1, 2, 4])
    assert [(s["streams"], s["runs_per_s"], s["samples_per_s"]) for s in found["streams"]] == [
        (1, 1000.0, 4000.0),
        (2, 2000.0, 8000.0),
    ]
    assert "4 streams: 4 streams do not fit into the memory" in found["notes"]
    assert found["cost_ratio"] <= 1.5


def test_the_device_is_looked_at_before_between_and_after(monkeypatch: pytest.MonkeyPatch) -> None:
    session, looks = FakeGpu(monkeypatch), list[tuple[float, float]]()
    measure_shape(
        session, FEEDS, 1, sampling=Sampling(), streams=(), peak_mib=lambda: 0.0, at_work=lambda: False,
        look=lambda spacing_s: looks.append((session.now, spacing_s)),
    )  # fmt: skip
    assert looks[0] == (0.0, 0.0)
    assert looks[-1] == (session.now, 0.0)
    assert len(looks) == len(session.calls) + 2
    assert all(spacing_s > 0 for _, spacing_s in looks[1:-1])
