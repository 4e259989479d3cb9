"""Slices: a ruined one fails though the mean is right, and a small one decides nothing."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from engineworks.errors import ModelError
from engineworks.measure.gates.gates import evaluate_gates
from engineworks.measure.slices import Slice, samples_needed, slice_values
from engineworks.recipe.recipe import Limits
from tests.typed_reports import accuracy, metric


def shares(engine: NDArray[Any], reference: NDArray[Any], names: NDArray[Any], *, lower: bool = False) -> list[Slice]:
    return slice_values(
        names, lambda rows: (float(engine[rows].mean()), float(reference[rows].mean())), lower_is_better=lower
    )


def verdict(slices: list[Slice], limit: float | None) -> tuple[str, dict[str, str]]:
    judged = evaluate_gates(
        accuracy(replace(metric(), slices=tuple(slices))), None, Limits(worst_slice_ratio=limit), {}
    )
    return judged.verdict, {check.name: check.message for check in judged.checks if "slice" in check.name}


RIGHT = np.ones(1000)
NAMES = np.where(np.arange(1000) < 960, "en", "is")


def test_a_ruined_slice_fails_though_the_mean_is_right() -> None:
    engine = np.where(NAMES == "is", np.arange(1000) % 10 < 7, 1.0)
    assert engine.mean() > 0.98
    word, told = verdict(shares(engine, RIGHT, NAMES), 0.95)
    assert word == "fail"
    assert "slice 'is' 0.7, fp32 1 (40 samples, ratio 0.7" in told["worst_slice_ratio"]
    assert "'en'" not in told["worst_slice_ratio"]
    assert "slices" not in told


def test_a_lost_slice_fails_without_any_limit() -> None:
    word, told = verdict(shares(np.where(NAMES == "is", 0.0, 1.0), RIGHT, NAMES), None)
    assert (word, told.keys()) == ("fail", {"slices"})
    assert told["slices"].startswith("top1: lost slice 'is' 0, fp32 1 (40 samples")


@pytest.mark.parametrize("quality", [0.0, 1.0])
def test_a_metric_that_answers_in_two_ways_decides_nothing_on_slices(quality: float) -> None:
    slices = tuple(shares(np.where(NAMES == "is", quality, 1.0), RIGHT, NAMES))
    report = accuracy(replace(metric(), slices=slices, repeated=0.7))
    checks = [c for c in evaluate_gates(report, None, Limits(worst_slice_ratio=0.5), {}).checks if "slice" in c.name]
    assert [c.name for c in checks] == ["slices", "worst_slice_ratio"][int(quality) :]
    assert all(c.verdict == "inconclusive" and "for the same outputs" in c.message for c in checks)


@pytest.mark.parametrize("limit", [0.8, 0.9, 0.95, 0.99])
def test_equal_rows_pass_from_the_number_of_samples_that_the_page_names(limit: float) -> None:
    enough = samples_needed(limit, 1.0)
    assert enough is not None
    for count, word in ((enough, "pass"), (enough - 1, "inconclusive")):
        rows = np.ones(count)
        found, told = verdict(shares(rows, rows, np.full(count, "a")), limit)
        assert found == word
        assert ("too few samples" in told["worst_slice_ratio"]) == (word == "inconclusive")


def test_one_wrong_sample_is_no_evidence() -> None:
    assert verdict(shares(np.zeros(1), np.ones(1), np.array(["rare"])), 0.9)[0] == "inconclusive"


def test_where_smaller_is_better_a_larger_error_is_a_loss() -> None:
    reference = np.full(100, 0.1)
    assert verdict(shares(reference * 3, reference, np.full(100, "a"), lower=True), 0.9)[0] == "fail"
    assert verdict(shares(reference * 0.5, reference, np.full(100, "a"), lower=True), 0.9)[0] == "pass"


def test_an_engine_that_gives_no_number_has_lost_the_slice() -> None:
    word, told = verdict(shares(np.full(9, math.nan), np.ones(9), np.full(9, "a")), None)
    assert (word, "not a number, fp32 1" in told["slices"]) == ("fail", True)


def test_a_slice_on_which_fp32_cannot_be_scored_is_named_and_decides_nothing() -> None:
    def score(rows: NDArray[np.intp]) -> tuple[float, float]:
        if 0 in rows:
            raise ModelError("only one class")
        return 1.0, 1.0

    names = np.where(np.arange(100) < 20, "odd", "even")
    word, told = verdict(slice_values(names, score, lower_is_better=False), 0.9)
    assert word == "inconclusive"
    assert "slice 'odd' (20 samples: only one class)" in told["worst_slice_ratio"]
    assert verdict(shares(np.ones(50), np.zeros(50), np.full(50, "a")), 0.9)[0] == "inconclusive"


def test_the_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    """An engine with a true ratio of exactly the limit fails, or passes, in few of many draws."""
    generator = np.random.default_rng(3)
    words = []
    for _ in range(60):
        engine = (generator.random(80) < 0.9).astype(float)
        words.append(verdict(shares(engine, np.ones(80), np.full(80, "a")), 0.9)[0])
    assert words.count("fail") <= 8
    assert words.count("pass") <= 8


def test_slices_survive_the_report() -> None:
    for part in shares(np.where(NAMES == "is", 0.0, 1.0), RIGHT, NAMES):
        assert Slice.from_json(part.to_json()) == part
