"""Latency sampling with a clock that the test drives: no real time is judged."""

from __future__ import annotations

import random

import pytest

from engineworks.measure import latency as room
from engineworks.measure.latency import Sampling, measure_latency
from engineworks.measure.statistics import enough_for


class FakeEngine:
    """Runs take what `times` says; the clock moves only when it runs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, times: list[float]) -> None:
        self.now, self.times, self.runs = 0.0, times, 0
        monkeypatch.setattr(room.time, "monotonic", lambda: self.now)

    def time_runs(self, runs: int) -> list[float]:
        taken = [self.times[min(self.runs + i, len(self.times) - 1)] for i in range(runs)]
        self.runs += runs
        self.now += sum(taken) / 1000
        return taken


def test_slow_first_runs_are_warm_up_and_not_in_the_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = FakeEngine(monkeypatch, [500.0] * 3 + [1.0] * 1000)
    report = measure_latency(engine.time_runs, 4, Sampling())
    assert report.latency_ms_p50 == report.latency_ms_p99 == 1.0
    assert report.throughput_per_s == pytest.approx(4000)
    assert report.warmup_runs >= 4


def test_a_steady_engine_needs_the_least_runs_only(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = FakeEngine(monkeypatch, [1.0])
    report = measure_latency(engine.time_runs, 1, Sampling(least_runs=50))
    assert 50 <= report.runs <= 100
    assert report.median_interval is not None
    assert report.median_interval.half_width == 0


def test_a_noisy_engine_is_sampled_until_the_time_is_up_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    chance = random.Random(1)
    engine = FakeEngine(monkeypatch, [chance.uniform(1, 100) for _ in range(100_000)])
    report = measure_latency(engine.time_runs, 1, Sampling(most_s=1.0))
    assert any("median known to ±" in note for note in report.notes)
    assert engine.now < 1.0 + 1.2 + 5.1


def test_a_judged_tail_gets_the_runs_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = FakeEngine(monkeypatch, [10.0])
    assert measure_latency(engine.time_runs, 1, Sampling(tail=True)).runs >= enough_for(0.99)
    engine = FakeEngine(monkeypatch, [10.0])
    report = measure_latency(engine.time_runs, 1, Sampling(tail=False))
    assert report.runs < enough_for(0.99)
    assert any("p99 is uncertain" in note for note in report.notes)


def test_one_very_slow_engine_still_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = FakeEngine(monkeypatch, [30_000.0])
    assert measure_latency(engine.time_runs, 1, Sampling()).runs >= 5
