"""Accuracy figures against NumPy done plainly."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engineworks.measure.accuracy import OutputComparison, cosine
from engineworks.measure.accuracy_report import Accuracy


def compare(engine: np.ndarray, reference: np.ndarray, parts: int = 1, axis: int | None = 0) -> OutputComparison:
    comparison = OutputComparison(axis)
    for e, r in zip(np.array_split(engine, parts), np.array_split(reference, parts), strict=True):
        comparison.add(e, r)
    return comparison


@given(st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_the_figures_do_not_depend_on_how_the_samples_are_batched(parts: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    reference = random.normal(size=(10, 7)).astype(np.float32)
    engine = reference + random.normal(0, 0.1, size=(10, 7)).astype(np.float32)
    result = compare(engine, reference, parts).result()
    e, r = engine.astype(np.float64).ravel(), reference.astype(np.float64).ravel()
    assert result.max_abs == pytest.approx(np.abs(e - r).max())
    assert result.mean_abs == pytest.approx(np.abs(e - r).mean())
    assert result.cosine == pytest.approx(e @ r / np.linalg.norm(e) / np.linalg.norm(r))
    assert result.sqnr_db == pytest.approx(10 * math.log10((r @ r) / ((e - r) @ (e - r))))
    assert result.elements == 70


def test_a_wrong_second_row_is_named() -> None:
    reference = np.eye(4, dtype=np.float32) + 0.1
    engine = reference.copy()
    engine[1] = -engine[1]
    result = compare(engine, reference, parts=2).result()
    assert result.worst_row == 1
    assert result.worst_row_cosine == pytest.approx(-1)


def test_rows_are_found_along_the_batch_axis() -> None:
    reference = np.random.default_rng(0).normal(size=(3, 5, 2))
    engine = reference.copy()
    engine[:, 4] *= -1
    comparison = OutputComparison(1)
    comparison.add(engine, reference)
    assert comparison.result().worst_row == 4


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_counted_not_averaged(bad: float) -> None:
    reference = np.ones((2, 3))
    engine = reference.copy()
    engine[0, 0] = bad
    result = compare(engine, reference).result()
    assert result.nonfinite == 1
    assert result.to_json()["cosine"] is None  # the others are equal, and yet 1.0 would be no figure of this output
    assert (result.max_abs, result.elements) == (0, 5)


def test_the_same_infinity_on_both_sides_is_no_difference() -> None:
    both = np.array([[1.0, -np.inf, np.nan]])
    assert compare(both, both).result().nonfinite == 0


def test_all_nan_has_no_cosine() -> None:
    result = compare(np.full((1, 2), np.nan), np.ones((1, 2))).result()
    assert result.nonfinite == 2
    assert result.to_json()["cosine"] is None


def test_zero_against_something_is_no_likeness() -> None:
    assert compare(np.zeros((1, 3)), np.ones((1, 3))).result().cosine == 0.0
    assert compare(np.zeros((1, 3)), np.zeros((1, 3))).result().cosine == 1.0


def test_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"shape \[1, 2\], the reference \[1, 3\]"):
        OutputComparison(0).add(np.ones((1, 2)), np.ones((1, 3)))


def test_a_cosine_that_is_no_number_is_never_one() -> None:
    assert math.isnan(cosine(math.nan, 1.0, 1.0))
    assert math.isnan(cosine(math.inf, math.inf, 1.0))
    known = OutputComparison(0).result()
    outputs = {"a": known, "b": replace(known, cosine=0.5)}
    assert Accuracy(outputs, None, 0, ()).worst_cosine == 0.5
    assert Accuracy({**outputs, "c": replace(known, cosine=None)}, None, 0, ()).worst_cosine is None


def test_empty_outputs_are_equal() -> None:
    result = compare(np.zeros((0, 3)), np.zeros((0, 3))).result()
    assert (result.cosine, result.mean_abs, result.max_abs, result.elements) == (1.0, 0.0, 0.0, 0)
