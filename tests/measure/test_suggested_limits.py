"""Limits from measurements: away from chance, and never looser than what explains them."""

from __future__ import annotations

import math

import numpy as np
import pytest

from engineworks.measure.slices import Slice, slice_values
from engineworks.measure.suggested_limits import Evidence, suggest_limits
from tests.typed_reports import metric


def whole(right: float, samples: int = 400) -> Slice:
    engine = (np.arange(samples) < right * samples).astype(float)
    fp32 = np.ones(samples)
    (part,) = slice_values(
        np.full(samples, "all"), lambda rows: (float(engine[rows].mean()), float(fp32[rows].mean())),
        lower_is_better=False,
    )  # fmt: skip
    return part


def evidence(worst: float | None, part: Slice | None = None, **nights: list[float]) -> Evidence:
    return Evidence("tiny/int8/cpu", worst, part, metric() if part else None, nights)


def test_the_limits_allow_chance_and_say_why() -> None:
    cosine, ratio = suggest_limits("int8", [evidence(0.9998, whole(0.98))], {"cosine": 0.9})
    assert (cosine.limit, cosine.value, cosine.before) == ("cosine", 0.99955, 0.9)
    assert "worst cosine 0.9998 (1 engine); 1.5 × its relative error of 0.02" in cosine.reason
    assert (ratio.limit, ratio.before) == ("metric_ratio", None)
    assert 0.95 < ratio.value < 0.98
    assert "ratio 0.98 on 400 samples, lower 95% bound 0.96" in ratio.reason


def test_the_worst_engine_and_the_worst_night_count() -> None:
    one, other = evidence(0.9999), evidence(0.9995, cosine=[0.9999, 0.999, math.nan])
    (cosine,) = suggest_limits("int8", [one, other], {})
    assert cosine.value == pytest.approx(0.9977)
    assert "2 engines, 2 earlier runs, worst 0.999" in cosine.reason


def test_fp32_gets_a_limit_of_its_metric() -> None:
    names = [s.limit for s in suggest_limits("fp32", [evidence(1.0, whole(0.9))], {})]
    assert names == ["cosine", "metric"]


def test_equal_outputs_give_a_limit_that_rounding_meets() -> None:
    (cosine,) = suggest_limits("fp32", [evidence(1.0)], {})
    assert cosine.value == 0.99999
    assert suggest_limits("fp32", [evidence(1.0)], {"cosine": 0.99999}) == []


def test_nothing_measured_suggests_nothing() -> None:
    assert suggest_limits("int8", [], {"cosine": 0.9}) == []
    assert suggest_limits("int8", [evidence(None)], {}) == []


def test_a_ruined_engine_gives_no_limit_and_a_looser_limit_is_marked() -> None:
    assert "its metric is 0.1 of fp32's" in evidence(0.9, whole(0.1)).ruined
    assert evidence(0.9, whole(0.9)).ruined == ""
    cosine, ratio = suggest_limits("int8", [evidence(0.99, whole(0.9))], {"cosine": 0.999, "metric_ratio": 0.5})
    assert (cosine.reason.endswith("; looser than now"), ratio.reason.endswith("; looser than now")) == (True, False)


def own(engine: float, *, lower: bool = False) -> Evidence:
    """fp32 at its own metric, whose bounds are 0.01 away."""
    part = Slice("all", 400, engine, engine, 1.0, 0.99, 1.0, engine - 0.01, engine + 0.01)
    return Evidence("tiny/fp32/cpu", None, part, metric(engine, lower_is_better=lower), {})


@pytest.mark.parametrize(("lower", "value"), [(False, 0.89), (True, 0.92)])
def test_fp32s_own_metric_is_that_of_the_worst_target_and_a_looser_limit_is_marked(lower: bool, value: float) -> None:
    found = [own(0.91, lower=lower), own(0.90, lower=lower)]
    for before, looser in ((0.905, True), (0.95 if lower else 0.8, False)):
        (suggestion,) = suggest_limits("fp32", found, {"metric": before})
        assert suggestion.value == value
        assert suggestion.reason.endswith("; looser than now") == looser


def test_a_metric_that_every_sample_meets_is_no_certainty() -> None:
    perfect = Evidence("tiny/fp32/cpu", None, whole(1.0, samples=60), metric(1.0), {})
    (suggestion,) = suggest_limits("fp32", [perfect], {})
    assert suggestion.value == 0.951  # 0.05^(1/60): the rule of three
