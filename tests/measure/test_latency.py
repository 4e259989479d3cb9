"""Latency sampling with a clock that the test drives: no real time is judged."""

from __future__ import annotations

import random

import pytest

from engineworks.engines.backends.base import RunTimes
from engineworks.measure import latency as room
from engineworks.measure.latency import LAZY_KERNELS, Sampling, measure_latency
from engineworks.measure.statistics import enough_for


class FakeEngine:
    """Runs take what `times` says; the clock moves only when it runs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, times: list[float]) -> None:
        self.now, self.times, self.runs = 0.0, times, 0
        monkeypatch.setattr(room.time, "monotonic", lambda: self.now)

    def time_runs(self, runs: int) -> RunTimes:
        taken = [self.times[min(self.runs + i, len(self.times) - 1)] for i in range(runs)]
        self.runs += runs
        self.now += sum(taken) / 1000
        return RunTimes(tuple(taken))


def test_slow_first_runs_are_warm_up_and_not_in_the_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = FakeEngine(monkeypatch, [500.0] * 3 + [1.0] * 1000)
    report = measure_latency(engine.time_runs, 4, Sampling())
    assert report.latency_ms_p50 == report.latency_ms_p99 == 1.0
    assert report.throughput_per_s == pytest.approx(4000)
    assert report.warmup_runs == 3
    assert report.warmup_s == 1.5
    assert report.settled


def test_a_steady_engine_needs_the_least_runs_only(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = FakeEngine(monkeypatch, [1.0])
    report = measure_latency(engine.time_runs, 1, Sampling())
    assert 250 <= report.runs <= 350
    assert report.warmup_runs == 0
    assert report.median_interval is not None
    assert report.median_interval.half_width == 0


def test_a_noisy_engine_is_sampled_until_the_time_is_up_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    chance = random.Random(1)
    engine = FakeEngine(monkeypatch, [chance.uniform(1, 100) for _ in range(100_000)])
    report = measure_latency(engine.time_runs, 1, Sampling(max_s=1.0))
    assert any("median known to ±" in note for note in report.notes)
    assert engine.now < 3 * 1.0 + 0.6


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


@pytest.mark.parametrize("swapped_after_s", [0.1, 0.7, 1.9, 4.0, 5.9])
def test_specialized_kernels_that_come_later_are_waited_for(
    monkeypatch: pytest.MonkeyPatch, swapped_after_s: float
) -> None:
    general = round(swapped_after_s / 0.001)
    engine = FakeEngine(monkeypatch, [1.0] * general + [0.6])
    report = measure_latency(engine.time_runs, 1, LAZY_KERNELS)
    assert report.latency_ms_p50 == report.latency_ms_p90 == 0.6
    assert report.warmup_runs == pytest.approx(general, abs=3)
    assert max(report.samples) == 0.6
    assert report.settled
    assert not [n for n in report.notes if "settled" in n]
    assert engine.now <= 1.5 * sum(report.samples) / 1000


def test_a_drop_is_waited_for_as_long_as_something_works_on_it(monkeypatch: pytest.MonkeyPatch) -> None:
    general = 9000
    engine = FakeEngine(monkeypatch, [1.0] * general + [0.6])
    report = measure_latency(engine.time_runs, 1, LAZY_KERNELS, lambda: engine.runs < general)
    assert report.latency_ms_p50 == 0.6
    assert report.warmup_runs == pytest.approx(general, abs=3)


def test_work_that_never_ends_is_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = FakeEngine(monkeypatch, [1.0])
    assert measure_latency(engine.time_runs, 1, LAZY_KERNELS, lambda: True).latency_ms_p50 == 1.0
    assert engine.now < 3 * LAZY_KERNELS.max_s + 1


def test_waiting_for_kernels_that_never_change_is_no_lost_time(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = FakeEngine(monkeypatch, [0.13])
    report = measure_latency(engine.time_runs, 1, LAZY_KERNELS)
    assert report.warmup_runs == 0
    assert 6.0 <= engine.now <= 6.2


def test_a_latency_that_keeps_falling_is_bounded_and_said_to_be_unsettled(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = FakeEngine(monkeypatch, [100 / (1 + i / 20) for i in range(1000)])
    report = measure_latency(engine.time_runs, 1, Sampling())
    assert not report.settled
    assert any("never settled: median" in note for note in report.notes)
    assert engine.now < 4


def test_what_gets_slower_stays_in_the_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = FakeEngine(monkeypatch, [1.0] * 100 + [2.0])
    report = measure_latency(engine.time_runs, 1, Sampling())
    assert report.warmup_runs == 0
    assert min(report.samples) == 1.0
