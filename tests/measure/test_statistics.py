"""Quantiles and their intervals."""

from __future__ import annotations

import numpy as np
import pytest

from engineworks.measure.statistics import enough_for, quantile, quantile_interval, student_quantile


@pytest.mark.parametrize("q", [0.0, 0.25, 0.5, 0.9, 0.99, 1.0])
def test_quantiles_are_those_of_numpy(q: float) -> None:
    samples = sorted(np.random.default_rng(3).normal(size=101))
    assert quantile(samples, q) == pytest.approx(np.quantile(samples, q))


@pytest.mark.parametrize(("freedom", "printed"), [(5, 4.032), (10, 3.169), (60, 2.660)])
def test_students_quantiles_are_those_of_printed_tables(freedom: int, printed: float) -> None:
    assert student_quantile(0.995, freedom) == pytest.approx(printed, abs=5e-4)


def test_the_interval_holds_the_true_median_as_often_as_it_says() -> None:
    random = np.random.default_rng(5)
    held = 0
    for _ in range(1000):
        interval = quantile_interval(sorted(random.exponential(size=60)), 0.5)
        assert interval is not None
        held += interval.low <= np.log(2) <= interval.high
    assert 930 <= held <= 990


def test_too_few_samples_have_no_interval() -> None:
    assert quantile_interval([1.0, 2.0], 0.5) is None
    assert quantile_interval(sorted(range(300)), 0.99) is None


def test_a_tail_needs_far_more_samples_than_a_median() -> None:
    assert enough_for(0.5) < 10
    assert 400 < enough_for(0.99) < 600
