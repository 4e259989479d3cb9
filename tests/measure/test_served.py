"""The sequence of shapes, the errors of rows, and the rule that judges them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engineworks.measure.served import Visit, odd_multiple, odd_size, row_errors, row_picks, visit_sequence
from engineworks.measure.served_checks import rounding_tolerance, served_checks, tolerance
from engineworks.measure.served_report import Served, ServedAgainst

TEXT = {"batch": (1, 4, 8), "length": (2, 16, 64)}
TRIPLE = st.lists(st.integers(0, 300), min_size=3, max_size=3).map(sorted)


@given(TRIPLE)
def test_odd_sizes_lie_within_the_profile(triple: list[int]) -> None:
    low, opt, high = triple
    for size in (odd_size(triple), odd_multiple(triple)):
        assert low <= size <= high
        assert size == opt or low < size < high


@pytest.mark.parametrize(
    ("triple", "odd", "multiple"),
    [((1, 8, 64), 37, 37), ((32, 256, 960), 609, 608), ((1, 1, 2), 1, 1), ((4, 4, 4), 4, 4), ((1, 1, 4), 3, 3)],
)
def test_odd_sizes(triple: Any, odd: int, multiple: int) -> None:
    assert (odd_size(triple), odd_multiple(triple)) == (odd, multiple)


def test_rows_come_alone_before_they_come_in_batches() -> None:
    visits = visit_sequence({"text": TEXT}, "batch", [{"length": 16}])
    for index, visit in enumerate(visits):
        if visit.batch > 1:
            assert any(v.lengths == visit.lengths and v.batch == 1 for v in visits[:index])


def test_every_profile_is_gone_through_out_and_back() -> None:
    visits = visit_sequence({"a": TEXT, "b": {"batch": (2, 2, 2), "length": (8, 8, 8)}}, "batch", [])
    assert list(dict.fromkeys((v.tour, v.profile) for v in visits)) == [(1, "a"), (1, "b"), (2, "b"), (2, "a")]
    out = {v.role for v in visits if v.profile == "a" and v.tour == 1}
    assert out == {"min", "opt", "max", "odd", "odd multiple", "max batch of min"}
    assert {v.role for v in visits if v.tour == 2 and v.profile == "a"} == {"min", "opt", "max", "odd"}


def test_the_lengths_of_the_data_are_among_the_shapes_if_the_profile_has_them() -> None:
    def lengths(*data: int) -> set[int]:
        visits = visit_sequence({"text": TEXT}, "batch", [{"length": n} for n in data])
        return {v.dims["length"] for v in visits}

    assert lengths(31, 33, 65) - lengths() == {31, 33}


def test_a_batch_of_no_rows_is_not_tried() -> None:
    visits = visit_sequence({"p": {"batch": (0, 4, 8), "past": (0, 4, 8)}}, "batch", [])
    assert {v.batch for v in visits} >= {1, 4, 8}
    assert 0 in {v.dims["past"] for v in visits}


def test_a_shape_that_is_fixed_is_visited_twice() -> None:
    assert [(v.dims, v.batch) for v in visit_sequence({"static": {}}, None, [], 4)] == [({}, 4), ({}, 4)]


def test_visits_survive_json() -> None:
    for visit in visit_sequence({"text": TEXT}, "batch", [{"length": 31}]):
        assert Visit.from_json(visit.to_json()) == visit


def test_rows_change_places_between_visits() -> None:
    visits = [v for v in visit_sequence({"a": {"batch": (1, 8, 16)}}, "batch", []) if v.batch == 8]
    first = [p[0] for v in visits for p in row_picks(v, 13)]
    assert len(set(first)) == len(first) == 4


def test_every_row_is_run_alone() -> None:
    (alone, *_) = visit_sequence({"a": {"batch": (2, 8, 16)}}, "batch", [])
    assert {r for picks in row_picks(alone, 13) for r in picks} == set(range(13))


def test_errors_are_relative_to_the_row_but_never_to_next_to_nothing() -> None:
    reference = np.array([[3.0, 4.0], [0.0, 1e-9], [0.0, 0.0]])
    engine = np.array([[3.0, 4.5], [0.0, 2e-9], [0.0, 0.0]])
    assert row_errors(engine, reference, 0, 0.0).error == pytest.approx([0.1, 1.0, 0.0])
    assert row_errors(engine, reference, 0, 1.0).error[1] < 1e-8
    assert row_errors(engine[2:] + 1, reference[2:], 0, 0.0).error == pytest.approx([1.0])


def test_a_row_turned_round_and_one_too_long_are_both_off() -> None:
    reference = np.ones((2, 3))
    errors = row_errors(np.array([[-1.0] * 3, [2.0] * 3]), reference, 0, 1.0)
    assert errors.error == pytest.approx([2, 1])
    assert errors.cosine == pytest.approx([-1, 1])


def test_rows_lie_along_their_axis() -> None:
    reference = np.arange(24.0).reshape(2, 3, 4)
    engine = reference.copy()
    engine[:, 1] += 1
    assert (row_errors(engine, reference, 1, 1.0).error > 0).tolist() == [False, True, False]
    assert len(row_errors(engine, reference, None, 1.0).error) == 1


@pytest.mark.parametrize("dtype", ["int64", "int32", "bool"])
def test_names_and_counts_are_right_or_wrong(dtype: str) -> None:
    reference = np.array([[1, 0], [1, 1]]).astype(dtype)
    engine = np.array([[1, 0], [0, 1]]).astype(dtype)
    assert row_errors(engine, reference, 0, 1.0).error.tolist() == [0, 0.5]


def test_pictures_are_numbers() -> None:
    reference = np.full((1, 100), 200, np.uint8)
    assert row_errors(reference + np.uint8(1), reference, 0, 200.0).error[0] == pytest.approx(0.005)


def test_infinities_of_both_are_no_fault_and_of_one_are() -> None:
    reference = np.array([[np.inf, 1.0], [np.nan, 1.0], [1.0, 1.0]])
    assert row_errors(reference, reference, 0, 1.0).nonfinite.tolist() == [0, 0, 0]
    assert row_errors(-reference, reference, 0, 1.0).nonfinite.tolist() == [1, 0, 0]


def test_outputs_without_elements_are_equal() -> None:
    assert row_errors(np.zeros((2, 0)), np.zeros((2, 0)), 0, 1.0).error.tolist() == [0, 0]
    assert row_errors(np.zeros((2, 0), np.int64), np.zeros((2, 0), np.int64), 0, 1.0).error.tolist() == [0, 0]


def test_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"shape \[1, 2\], the reference \[2, 2\]"):
        row_errors(np.ones((1, 2)), np.ones((2, 2)), 0, 1.0)


@pytest.mark.parametrize(
    ("precision", "cosine", "reference", "itself"),
    [
        ("fp32", None, 0.0134, 0.00447),
        ("int8", 0.99, 0.424, 0.212),
        ("int8", 0.5, 0.7, 0.35),
        ("fp16", 1.0, 0.015, 0.005),
    ],
)
def test_the_tolerance_follows_from_the_cosine_limit(
    precision: str, cosine: float | None, reference: float, itself: float
) -> None:
    found = tolerance(precision, cosine)
    assert (found.reference, found.itself) == (pytest.approx(reference, rel=0.01), pytest.approx(itself, rel=0.01))


def test_nothing_was_tried_says_nothing() -> None:
    nothing = Served("fp32", (), (), {}, ServedAgainst("fp32", "", "rows", {}), (), (), (), 0, 0)
    assert list(served_checks(nothing, None)) == []


@pytest.mark.parametrize(
    ("precision", "moved", "reference", "itself"),
    [("fp32", 0.0, 0.0135, 0.0045), ("int8", 0.0, 0.15, 0.15), ("int8", 0.1, 0.4, 0.4), ("fp16", 1.0, 0.7, 0.5)],
)
def test_against_the_lowered_model_the_precision_decides(
    precision: str, moved: float, reference: float, itself: float
) -> None:
    found = rounding_tolerance(precision, moved)
    assert (found.reference, found.itself) == (pytest.approx(reference), pytest.approx(itself))
