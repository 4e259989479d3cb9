"""Equality of outputs: as tight as floats allow, and not fooled by NaN, masks, zeros or integers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from engineworks.model.equivalence import difference, resized
from engineworks.tensors import TensorSpec

NAN, INF = np.nan, np.inf


def f32(*content: float) -> np.ndarray[Any, Any]:
    return np.array(content, np.float32)


@pytest.mark.parametrize(
    ("expected", "actual"),
    [
        (f32(1, 2, 3), f32(1, 2, 3.00002)),
        (f32(0, 1000), f32(0.001, 1000)),
        (f32(NAN, INF, -INF, 1), f32(NAN, INF, -INF, 1)),
        (f32(NAN, NAN), f32(NAN, NAN)),
        (f32(), f32()),
        (f32(0, 0), f32(0, -0.0)),
        (np.array([1.0, 2.0], np.float16), np.array([1.001, 2.0], np.float16)),
        (np.array([1, 2]), np.array([1, 2])),
        (np.array([True, False]), np.array([True, False])),
    ],
)
def test_equal(expected: Any, actual: Any) -> None:
    assert difference(expected, actual)[1] == ""


@pytest.mark.parametrize(
    ("expected", "actual", "problem"),
    [
        (f32(1, 2, 3), f32(1, 2, 3.001), "differs by 0.000999928 where it is 3, allowed are 3e-05"),
        (f32(0, 0), f32(0, 1e-7), "differs by 1e-07 where it is 0, allowed are 0"),
        (f32(NAN, 1), f32(1, NAN), "has NaN or infinity in other places: 2 of 2 values"),
        (f32(1, 1), f32(1, NAN), "has NaN or infinity in other places: 1 of 2 values"),
        (f32(INF), f32(-INF), "has NaN or infinity in other places: 1 of 1 values"),
        (f32(INF), f32(3e38), "has NaN or infinity in other places: 1 of 1 values"),
        (np.array([1, 2, 3]), np.array([1, 2, 5]), "differs in 1 of 3 values, by up to 2"),
        (np.array([True]), np.array([False]), "differs in 1 of 1 values"),
        (f32(1, 2), f32(1), "is float32[1] instead of float32[2]"),
        (f32(1), np.array([1.0]), "is float64[1] instead of float32[1]"),
    ],
)
def test_different(expected: Any, actual: Any, problem: str) -> None:
    assert problem in difference(expected, actual)[1]


def test_a_mask_of_huge_values_does_not_excuse_errors_elsewhere() -> None:
    logits = np.random.default_rng(0).normal(size=1000).astype(np.float32)
    logits[::2] = np.finfo(np.float32).min
    wrong = logits.copy()
    wrong[1] += 0.01
    assert "differs by 0.0" in difference(logits, wrong)[1]


def test_the_largest_difference_is_told_even_if_it_is_allowed() -> None:
    assert difference(f32(1000, 1), f32(1000.001, 1))[0] == pytest.approx(0.001, rel=0.1)


def test_each_dynamic_dimension_is_tried_at_another_length() -> None:
    inputs = [
        TensorSpec("ids", "int64", ("batch", "sequence")),
        TensorSpec("mask", "bool", ("batch", 1, "sequence")),
        TensorSpec("scale", "float32", ()),
    ]
    feed = {"ids": np.arange(6).reshape(1, 6), "mask": np.ones((1, 1, 6), bool), "scale": np.float32(2)}
    found = {dim: {name: np.shape(v) for name, v in other.items()} for dim, other in resized(feed, inputs)}  # type: ignore[arg-type]
    assert found == {
        "batch": {"ids": (2, 6), "mask": (2, 1, 6), "scale": ()},
        "sequence": {"ids": (1, 3), "mask": (1, 1, 3), "scale": ()},
    }
