"""Charts drawn as SVG: round ticks, and nothing that is not a number."""

from __future__ import annotations

import math
import re

import pytest

from engineworks.report.chart import WIDTH, Scale, padded
from engineworks.report.plots import Choice, Curve, Panel, Track, pareto_plot, sweep_plot, trend_plot


@pytest.mark.parametrize(
    ("low", "high", "texts"),
    [
        (0, 4.2, ["0", "1", "2", "3", "4"]),
        (-1, 1, ["−1.0", "−0.5", "0.0", "0.5", "1.0"]),
        (0.99971, 0.99981, ["0.99972", "0.99974", "0.99976", "0.99978", "0.99980"]),
        (0, 12, ["0.0", "2.5", "5.0", "7.5", "10.0"]),
        (0, 260_000, ["0", "100,000", "200,000"]),
    ],
)
def test_ticks_are_round_and_have_the_digits_that_tell_them_apart(low: float, high: float, texts: list[str]) -> None:
    assert list(Scale(low, high, 0, 1).ticks().values()) == texts


@pytest.mark.parametrize(
    ("low", "high", "texts"),
    [(0.08, 3, ["0.1", "0.2", "0.5", "1", "2"]), (1.1, 2.6, ["1.2", "1.5", "2", "2.5"]), (0.5, 5000, ["1", "10", "100", "1000"])],
)  # fmt: skip
def test_ticks_of_a_logarithmic_axis(low: float, high: float, texts: list[str]) -> None:
    scale = Scale(low, high, 0, 100, log=True)
    assert list(scale.ticks().values()) == texts
    assert scale(low) == 0
    assert scale(math.sqrt(low * high)) == pytest.approx(50)


def test_equal_values_are_kept_apart() -> None:
    for value in (0.0, 2.5, -3.0):
        low, high = padded([value, value], 0.2)
        assert low < value < high


def choice(name: str, latency_ms: float, quality: float) -> Choice:
    return Choice(name, 0, latency_ms, quality, 1e6, "pass")


def places(svg: str) -> list[float]:
    """Every x of what it draws."""
    found = [float(x) for x in re.findall(r'(?:[ML]|c?x=")(-?[\d.]+)', svg)]
    assert found
    assert "nan" not in svg
    return found


def test_what_is_not_finite_is_left_out_and_the_rest_lies_within_the_drawing() -> None:
    a, b, lost = choice("fp32", 1.0, 0.9), choice("<int8>", 2.0, 0.8), choice("fp16", 1.5, math.nan)
    drawn = pareto_plot([a, b, lost], "t", xlabel="x", ylabel="y")
    assert "&lt;int8&gt;" in drawn
    assert "fp16" not in drawn
    assert pareto_plot([a, lost], "t", xlabel="x", ylabel="y") == ""
    trend = trend_plot([Panel("p50", "ms", [Track("e", 0, [None, math.inf, 1.0, 1.0])])], ["a", "b", "c", "d"], [], "t")
    sweep = sweep_plot([Curve("e", 0, [8], [0.0], [0.0], 8)], "t", budget_ms=2.0)
    assert all(0 <= x <= WIDTH for svg in (drawn, trend, sweep) for x in places(svg))
