"""Statistics of samples: exact whatever the batches, refusing what is not finite; two sets that differ are told apart."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray

from engineworks.errors import SamplesError
from engineworks.model.calibrate.inputs import DRAWN, InputStatistics, InputWatch, drift, ks_critical, ks_distance
from engineworks.model.calibrate.trust import check_samples, constant_integers


def look(array: NDArray[np.generic], sizes: Sequence[int] = (7,), refuse: str | None = None) -> InputWatch:
    """A watch that saw the input x in batches of these sizes."""
    watch = InputWatch({"x": 0}, len(array), refuse=refuse)
    bounds = np.cumsum([0, *(sizes[i % len(sizes)] for i in range(len(array)))])
    for _ in watch.watch({"x": array[a:b]} for a, b in pairwise(bounds) if a < len(array)):
        pass
    return watch


def statistics(array: NDArray[np.generic], sizes: Sequence[int] = (7,)) -> InputStatistics:
    return look(array, sizes).statistics()["x"]


@pytest.mark.parametrize("sizes", [(1,), (64,), (3, 17)])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int64, np.bool_])
def test_moments_are_those_of_all_values_at_once(dtype: type, sizes: Sequence[int]) -> None:
    values = (np.random.default_rng(0).standard_normal((64, 3, 5)) * 3 + 100).astype(dtype)
    seen = statistics(values, sizes)
    assert (seen.samples, seen.minimum, seen.maximum) == (64, values.min(), values.max())
    assert seen.mean == pytest.approx(values.mean(dtype=np.float64))
    assert seen.std == pytest.approx(values.std(dtype=np.float64), abs=1e-9)


def test_what_is_kept_does_not_grow_with_samples_and_comes_from_all_of_them() -> None:
    values = np.arange(20_000, dtype=np.float32)[:, None]
    seen = statistics(values, (64,))
    assert DRAWN / 2 <= len(seen.drawn) <= 2 * DRAWN
    assert ks_distance(seen.drawn, values.ravel()) < 0.01
    assert list(seen.drawn) == sorted(seen.drawn)


def test_samples_may_lie_along_any_axis_or_be_whole_batches() -> None:
    watch = InputWatch({"state": 1, "rate": None}, 6)
    for rate in (1.0, 3.0):
        list(watch.watch([{"state": np.full((2, 3, 4), rate, np.float32), "rate": np.array(rate)}]))
    seen = watch.statistics()
    assert (seen["state"].samples, seen["rate"].samples) == (6, 2)
    assert seen["rate"].mean == 2


@pytest.mark.parametrize(("bad", "said"), [(np.nan, "NaN"), (np.inf, "infinity"), (-np.inf, "infinity")])
def test_a_value_that_is_not_finite_is_refused_with_its_sample(bad: float, said: str) -> None:
    values = np.zeros((20, 4), np.float32)
    values[11, 2] = bad
    with pytest.raises(SamplesError, match=f"calib.npz holds {said}: input 'x', sample 11;"):
        look(values, refuse="calib.npz")
    seen = statistics(values)
    assert (seen.nonfinite, seen.maximum) == (1, 0)
    json.dumps(seen.to_json(), allow_nan=False)


def test_a_sum_that_overflows_is_no_infinity() -> None:
    values = np.full((4, 1000), np.finfo(np.float32).max)
    assert look(values, refuse="calib.npz").statistics()["x"].nonfinite == 0


def test_samples_that_are_all_the_same_are_noticed() -> None:
    row = np.random.default_rng(0).standard_normal((1, 5))
    assert look(np.repeat(row, 20, axis=0)).repeated
    rows = np.repeat(row, 20, axis=0)
    rows[19, 4] += 1e-6
    assert not look(rows).repeated


def test_data_that_is_one_value_throughout_is_refused() -> None:
    black = look(np.zeros((8, 3, 4), np.float32)).statistics()
    with pytest.raises(SamplesError, match=r"calib\.npz is constant: 'x' is always 0"):
        check_samples(black, "calib.npz")
    check_samples({**black, "mask": statistics(np.arange(8))}, "calib.npz")


def test_statistics_survive_json() -> None:
    seen = statistics(np.random.default_rng(0).standard_normal((9, 4)).astype(np.float32))
    assert InputStatistics.from_json(json.loads(json.dumps(seen.to_json()))) == seen


IMAGES = np.random.default_rng(0).uniform(0, 1, (400, 6, 6)).astype(np.float32)


@pytest.mark.parametrize(
    ("evaluation", "differs"),
    [
        (IMAGES[200:], False),
        (IMAGES[200:] * 255, True),
        (IMAGES[200:] * 0, True),
        ((IMAGES[200:] - 0.5) / 0.5, True),
        (IMAGES[200:] * 1.05, False),
        (IMAGES[200:203], False),
    ],
    ids=["the same", "not scaled", "black", "normalized", "a little brighter", "three samples"],
)
def test_data_that_was_prepared_differently_is_told_apart(evaluation: NDArray[np.float32], differs: bool) -> None:
    found = drift({"x": statistics(IMAGES[:200])}, {"x": statistics(evaluation)})
    assert bool(found) == differs
    if differs:
        assert found[0].startswith("input 'x' differs between calibration and evaluation data: mean 0.4978 against")


def test_another_scale_around_zero_is_told_of_few_samples() -> None:
    values = np.random.default_rng(0).standard_normal((40, 16)).astype(np.float32)
    assert drift({"x": statistics(values[:24] * 255)}, {"x": statistics(values[24:])})
    assert not drift({"x": statistics(values[:24])}, {"x": statistics(values[24:])})


def test_other_tokens_are_no_drift_but_other_padding_is() -> None:
    random = np.random.default_rng(0)
    tokens = {"x": statistics(random.integers(0, 30_000, (200, 16)))}
    assert not drift(tokens, {"x": statistics(random.integers(0, 22_000, (200, 16)))})
    short, long = (np.arange(16) < n for n in (4, 14))
    masks = [{"x": statistics(np.tile(mask, (200, 1)).astype(np.int64))} for mask in (short, long)]
    assert drift(masks[0], masks[1])


def test_an_integer_input_that_only_calibration_holds_still_is_a_warning() -> None:
    zeros, varied = {"x": statistics(np.zeros((8, 4), np.int64))}, {"x": statistics(np.arange(32).reshape(8, 4))}
    assert constant_integers(zeros, zeros) == ()
    assert constant_integers(varied, zeros) == ()
    assert constant_integers(zeros, varied) == (
        "calibration input 'x' is 0 in every sample, in the evaluation data it is not",
    )


def test_the_distance_and_its_critical_value_are_scipys() -> None:
    stats = pytest.importorskip("scipy.stats")
    random = np.random.default_rng(0)
    one, other = random.standard_normal(300), np.round(random.standard_normal(200) + 0.2, 1)
    assert ks_distance(one, other) == pytest.approx(stats.ks_2samp(one, other).statistic)
    assert stats.kstwobign.sf(ks_critical(300, 200, 0.01) * (300 * 200 / 500) ** 0.5) == pytest.approx(0.01, rel=1e-3)
