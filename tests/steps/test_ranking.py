"""The order of parts, which groups are looked into, and the search for the shortest list. Numbers in, lists out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from engineworks.measure.accuracy import OutputComparison
from engineworks.measure.accuracy_report import Accuracy, MetricValues
from engineworks.steps.partial_quantization.groups import Group
from engineworks.steps.partial_quantization.ranking import make_trial, rank, shortest_list, to_split, worst_noise


def report(sqnr: float | None, metric: float | None = None, *, lower: bool = False, **output: Any) -> Accuracy:
    one = replace(OutputComparison(0).result(), **{"sqnr_db": sqnr, "max_abs": 1.0, "cosine": 0.9, **output})
    values = MetricValues("top1", "labels", 100, lower, metric, 0.8, None)
    return Accuracy({"y": one}, values if metric is not None else None, 100, (1,))


def group(name: str, size: int = 1) -> Group:
    return Group(name, tuple(f"{name}{i}" for i in range(size)))


def test_without_labels_the_outputs_error_decides() -> None:
    trials = [make_trial(group("a"), report(30.0)), make_trial(group("b"), report(10.0))]
    assert [t.group.name for t in rank(trials, 100)] == ["b", "a"]
    assert rank(trials, 100)[0].loss is None
    labels = report(10.0, 0.5).metric
    assert labels is not None
    assert replace(labels, kind="agreement").loss() is None


def test_a_loss_beyond_chance_comes_before_the_outputs_error() -> None:
    trials = [make_trial(group("noisy"), report(10.0, 0.8)), make_trial(group("wrong"), report(30.0, 0.7))]
    assert [t.group.name for t in rank(trials, 100)] == ["wrong", "noisy"]
    assert [t.group.name for t in rank(trials, 20)] == ["noisy", "wrong"]  # 2.5 of 20 samples


def test_of_an_error_rate_more_is_worse() -> None:
    assert math.isclose(make_trial(group("a"), report(30.0, 0.9, lower=True)).loss or 0.0, 0.125)


def test_not_finite_is_worst_of_all() -> None:
    trials = [make_trial(group("a"), report(1.0)), make_trial(group("b"), report(50.0, nonfinite=1))]
    assert rank(trials, 100)[0].group.name == "b"
    assert rank(trials, 100)[0].part.noise is None


def test_noise_of_the_worst_output() -> None:
    one, equal = report(20.0).outputs["y"], report(None, max_abs=0.0).outputs["y"]
    assert math.isclose(worst_noise(Accuracy({"y": one, "z": equal}, None, 1, (1,))), 0.01)
    zeros = replace(equal, max_abs=0.5)  # of a reference of zeros
    assert worst_noise(Accuracy({"y": one, "z": zeros}, None, 1, (1,))) == math.inf


def test_groups_that_make_most_of_the_noise_are_looked_into() -> None:
    trials = [make_trial(group("a", 3), report(10.0)), make_trial(group("b", 3), report(30.0))]
    assert [t.group.name for t in to_split(rank(trials, 1))] == ["a"]
    assert to_split(rank([make_trial(group("one"), report(10.0))], 1)) == []


class Noise:
    """Limits hold while the noise of what is quantized stays small."""

    def __init__(self, noise: dict[str, float], limit: float) -> None:
        self.noise, self.limit, self.asked = noise, limit, 0

    def __call__(self, kept: Sequence[Group]) -> bool:
        self.asked += 1
        names = {g.name for g in kept}
        return sum(v for n, v in self.noise.items() if n not in names) <= self.limit


def groups(names: Sequence[str]) -> list[Group]:
    return [Group(n, (n,)) for n in names]


def test_nothing_is_kept_where_the_limits_hold() -> None:
    assert shortest_list(groups("abc"), Noise(dict.fromkeys("abc", 0.1), 1)) == []


def test_the_costliest_are_kept_and_no_more() -> None:
    noise = Noise({"a": 5, "b": 3, "c": 0.5, "d": 0.3, "e": 0.1}, 1.0)
    assert [g.name for g in shortest_list(groups("abcde"), noise) or []] == ["a", "b"]


def test_what_a_wrong_ranking_put_in_goes_out_again() -> None:
    noise = Noise({"a": 0.1, "b": 3, "c": 0.1, "d": 5, "e": 0.1}, 1.0)
    assert [g.name for g in shortest_list(groups("abcde"), noise) or []] == ["b", "d"]


def test_none_where_leaving_out_all_but_one_is_not_enough() -> None:
    assert shortest_list(groups("abc"), Noise(dict.fromkeys("abc", 2.0), 1)) is None
    assert shortest_list(groups("a"), Noise({"a": 2.0}, 1)) is None


def test_few_questions_for_many_parts() -> None:
    names = [f"n{i}" for i in range(500)]
    noise = Noise({n: 10.0 if i < 3 else 0.001 for i, n in enumerate(names)}, 1.0)
    assert len(shortest_list(groups(names), noise) or []) == 3
    assert noise.asked <= 14
