"""Growth per repetition: a planted leak is found, noise is none."""

from __future__ import annotations

import random

import pytest

from engineworks.measure.slopes import FEWEST, slope, slopes

LIMIT_KIB = 64.0


def readings(leak_kib: float, noise_kib: float, count: int = 100) -> list[float]:
    """Resident KiB after each reload: a pool that fills at first, noise, and a leak."""
    chance = random.Random(7)
    return [
        50_000 + 3000 * (1 - 0.8**n) + leak_kib * n + chance.gauss(0, noise_kib) for n in range(count)
    ]  # fmt: skip


@pytest.mark.parametrize("noise_kib", [0.0, 200.0, 1000.0])
def test_a_planted_leak_of_128_kib_is_found_and_lies_in_its_interval(noise_kib: float) -> None:
    found = slope(readings(128.0, noise_kib))
    assert found is not None
    assert found.low > LIMIT_KIB
    assert found.low <= 129 <= found.high + 1


@pytest.mark.parametrize("noise_kib", [0.0, 200.0])
def test_noise_and_a_pool_that_fills_are_no_leak(noise_kib: float) -> None:
    found = slope(readings(0.0, noise_kib))
    assert found is not None
    assert found.high < LIMIT_KIB


def test_readings_that_wander_have_a_wider_interval_than_independent_ones() -> None:
    chance, wandering = random.Random(3), [0.0]
    for _ in range(99):
        wandering.append(0.9 * wandering[-1] + chance.gauss(0, 100))
    shuffled = list(wandering)
    chance.shuffle(shuffled)
    wide, narrow = slope(wandering), slope(shuffled)
    assert wide is not None
    assert narrow is not None
    assert wide.high - wide.low > 1.5 * (narrow.high - narrow.low)


def test_too_few_readings_have_no_slope_and_only_shared_quantities_are_read() -> None:
    assert slope([1.0] * FEWEST) is None
    found = slopes([{"a": float(n), "b": 1.0} if n else {"a": 0.0} for n in range(20)])
    assert list(found) == ["a"]
    assert found["a"].per_step == pytest.approx(1)
