"""The recommended batch: the rule, case by case, and the sentence."""

from __future__ import annotations

from typing import Any

import pytest

from engineworks.measure.sweep import Recommendation, recommend
from tests.typed_reports import latency, shape_json


def point(batch: int, samples_per_s: float, ms: float, mib: float) -> dict[str, Any]:
    return shape_json(ms, batch=batch, throughput_per_s=samples_per_s, memory_mib=mib)


ONE = point(1, 1000.0, 1.0, 100.0)
ALL = [point(32, 10_000.0, 3.2, 800.0), ONE, point(16, 9100.0, 1.8, 400.0), point(8, 5000.0, 1.6, 200.0)]


def recommended(
    sweep: list[dict[str, Any]], *, latency_ms: float | None, memory_total_mib: float | None
) -> Recommendation:
    return recommend(latency(sweep=sweep, memory_total_mib=memory_total_mib), latency_ms)


def test_the_fastest_within_budget_and_memory_is_recommended() -> None:
    found = recommended(ALL, latency_ms=3.0, memory_total_mib=10_000)
    assert found.batch == 16
    assert found.message == (
        "batch 16: 9,100 samples/s at 1.8 ms, within 3 ms; 32 is over the budget (3.2 ms)"
    )  # fmt: skip


def test_without_a_budget_the_sentence_says_so() -> None:
    found = recommended(ALL, latency_ms=None, memory_total_mib=10_000)
    assert found.batch == 32
    assert "no latency budget was given (performance.sweep.latency_ms)" in found.message


def test_70_percent_of_the_memory_is_the_most() -> None:
    assert recommended(ALL, latency_ms=None, memory_total_mib=800 / 0.7 + 0.01).batch == 32
    found = recommended(ALL, latency_ms=None, memory_total_mib=800 / 0.7 - 0.01)
    assert found.batch == 16
    assert "32 takes 800 MiB, over 70% of the device's 1,143 MiB" in found.message


def test_memory_that_is_not_known_is_not_judged_and_said() -> None:
    found = recommended(ALL, latency_ms=3.0, memory_total_mib=None)
    assert found.batch == 16
    assert found.message.endswith("the device's memory is not known")


@pytest.mark.parametrize(("more", "batch"), [(1.009, 8), (1.011, 16)])
def test_a_larger_batch_must_give_more_than_is_noise(more: float, batch: int) -> None:
    points = [point(8, 1000.0, 8.0, 1.0), point(16, 1000.0 * more, 16.0, 1.0)]
    assert recommended(points, latency_ms=None, memory_total_mib=None).batch == batch


def test_no_batch_that_fits_is_no_recommendation_with_every_reason() -> None:
    failed = {"batch": 64, "dims": {}, "profile": None, "tail": False, "error": "out of memory"}
    found = recommended([ONE, failed], latency_ms=0.5, memory_total_mib=1000)
    assert found.batch is None
    assert found.message == "no batch can be recommended; 1 is over the budget (1 ms); 64 could not be run"
