"""Verdicts: a pass must be earned, a missing figure never passes, every check speaks for itself."""

from __future__ import annotations

from typing import Any

import pytest

from engineworks.measure.accuracy_report import Accuracy
from engineworks.measure.check import Check
from engineworks.measure.gates import gates
from engineworks.measure.gates.gates import Verdict, disturbed_budgets
from engineworks.measure.latency_report import Latency
from engineworks.recipe.performance import Budget
from engineworks.recipe.recipe import Limits
from tests.typed_reports import latency_json, shape_json

OUTPUT = {
    "cosine": 0.995, "max_abs": 0.1, "mean_abs": 0.01, "sqnr_db": 30.0, "nonfinite": 0, "elements": 100,
    "worst_row": 7, "worst_row_cosine": 0.9,
}  # fmt: skip
METRIC = {"name": "top1", "kind": "labels", "samples": 597, "lower_is_better": False,
          "engine": 0.98, "reference": 0.99, "ratio": 0.98 / 0.99}  # fmt: skip


def accuracy(**changes: Any) -> dict[str, Any]:
    return {"outputs": {"logits": OUTPUT | changes}, "metric": METRIC, "samples": 597, "batches": [8]}


def latency(**changes: Any) -> dict[str, Any]:
    return latency_json({"one": shape_json(**changes)})


def evaluate_gates(accuracy: dict[str, Any] | None, latency: Any, *limits: Any, **more: Any) -> Verdict:
    return gates.evaluate_gates(
        None if accuracy is None else Accuracy.from_json(accuracy), read(latency), *limits, **more
    )


def read(latency: Any) -> Latency | None:
    return None if latency is None else Latency.from_json(latency)


def test_within_all_limits_is_a_pass() -> None:
    verdict = evaluate_gates(accuracy(), latency(), Limits(cosine=0.99, metric_ratio=0.98), {"one": Budget(p99_ms=3.0)})
    assert verdict.verdict == "pass"
    assert {c.name for c in verdict.checks} == {"finite[logits]", "cosine[logits]", "metric_ratio", "p99_ms[one]"}


@pytest.mark.parametrize(
    ("limits", "changes"),
    [
        (Limits(cosine=0.999), {}),
        (Limits(sqnr_db=40), {}),
        (Limits(max_abs=0.05), {}),
        (Limits(mean_abs=0.005), {}),
        (Limits(metric=0.985), {}),
        (Limits(metric_ratio=0.995), {}),
        (Limits(cosine=0.9), {"nonfinite": 1}),
        (Limits(cosine=0.9), {"cosine": None}),
    ],
    ids=str,
)
def test_one_broken_limit_is_a_fail(limits: Limits, changes: dict[str, Any]) -> None:
    verdict = evaluate_gates(accuracy(**changes), None, limits, {})
    assert verdict.verdict == "fail"
    assert len(verdict.failures) == 1


def test_the_sentence_says_value_limit_and_worst_sample() -> None:
    (_, check) = evaluate_gates(accuracy(), None, Limits(cosine=0.999), {}).checks
    assert check.message == (
        "logits: cosine similarity to the fp32 reference is 0.995, limit at least 0.999. Worst sample: 7 (cosine 0.9)."
    )


def test_checks_recorded_under_their_former_key_are_read() -> None:
    check = Check("cosine[y]", "fail", "y: cosine is 0.9.", "waived")
    former = {"sentence" if key == "message" else key: value for key, value in check.to_json().items()}
    assert Check.from_json(former) == Check.from_json(check.to_json()) == check


def test_the_metric_sentence_is_for_a_data_scientist() -> None:
    check = evaluate_gates(accuracy(), None, Limits(metric_ratio=0.995), {}).failures[0]
    assert check.message == (
        "top1 on 597 labelled samples: 0.98, fp32 0.99 (ratio 0.989899), limit at least 0.995 of fp32."
    )


def test_equal_outputs_have_no_noise_to_measure() -> None:
    assert evaluate_gates(accuracy(sqnr_db=None, max_abs=0.0), None, Limits(sqnr_db=50), {}).verdict == "pass"


def test_a_metric_limit_without_a_metric_fails() -> None:
    report = accuracy() | {"metric": None}
    assert evaluate_gates(report, None, Limits(metric=0.5), {}).verdict == "fail"


@pytest.mark.parametrize(
    "budget",
    [Budget(p50_ms=0.9), Budget(p90_ms=1.4), Budget(p99_ms=1.9), Budget(throughput_per_s=1001), Budget(memory_mib=9),
     Budget(load_ms=4), Budget(first_run_ms=19), Budget(engine_mib=6.5)],
    ids=str,
)  # fmt: skip
def test_a_broken_budget_is_a_fail(budget: Budget) -> None:
    assert evaluate_gates(accuracy(), latency(), Limits(cosine=0.9), {"one": budget}).verdict == "fail"


@pytest.mark.parametrize(("field", "runs", "needed"), [("p99_ms", 100, 563), ("p99_ms", 562, 563), ("p90_ms", 52, 53)])
@pytest.mark.parametrize("limit", [1.0, 3.0], ids=["broken", "kept"])
def test_a_tail_of_few_runs_is_inconclusive_either_way_and_says_how_many_it_needs(
    limit: float, field: str, runs: int, needed: int
) -> None:
    budgets = {"one": Budget(**{field: limit})}
    verdict = evaluate_gates(accuracy(), latency(runs=runs), Limits(cosine=0.9), budgets)
    assert verdict.verdict == "inconclusive"
    words = f"{runs} runs are too few to know a {field[:3]}: that needs {needed}."
    assert verdict.checks[-1].message.endswith(words)
    enough = evaluate_gates(accuracy(), latency(runs=needed), Limits(cosine=0.9), budgets)
    assert enough.verdict == ("fail" if limit == 1.0 else "pass")


def test_what_was_disturbed_before_is_said_and_only_disturbed_budgets_are_measured_again() -> None:
    verdict = evaluate_gates(
        accuracy(), latency() | {"disturbed_before": 2}, Limits(cosine=0.9), {"one": Budget(p50_ms=9)}
    )
    assert verdict.verdict == "pass"
    assert verdict.checks[-1].message.endswith("Measured again: 2 measurements before were disturbed.")
    noisy = latency(complaints=["noise"]) | {"load_complaints": ["noise"]}
    budget = Budget(p50_ms=9, p99_ms=9, load_ms=9, engine_mib=9)
    assert disturbed_budgets(Latency.from_json(noisy), {"one": budget}) == [
        "p50_ms[one]",
        "p99_ms[one]",
        "load_ms[one]",
    ]
    assert disturbed_budgets(Latency.from_json(noisy), {"one": Budget(engine_mib=9)}) == []
    assert (
        disturbed_budgets(Latency.from_json(latency(runs=9)), {"one": Budget(p99_ms=9)}) == []
    )  # that would not change


@pytest.mark.parametrize("limit", [0.5, 3.0], ids=["broken", "kept"])
def test_a_figure_of_a_disturbed_device_is_inconclusive_either_way(limit: float) -> None:
    report = latency(complaints=["another process used the GPU", "the clocks were lowered"])
    verdict = evaluate_gates(accuracy(), report, Limits(cosine=0.9), {"one": Budget(p50_ms=limit)})
    assert verdict.verdict == "inconclusive"
    assert verdict.checks[-1].message.endswith(
        "Not to be trusted: another process used the GPU; the clocks were lowered. The next build measures again."
    )


def test_a_disturbance_while_loading_concerns_the_load_time_alone() -> None:
    report = latency() | {"load_complaints": ["another process used the GPU"]}
    for budget, word in (
        (Budget(load_ms=9), "inconclusive"),
        (Budget(p50_ms=9), "pass"),
        (Budget(engine_mib=9), "pass"),
    ):
        assert evaluate_gates(accuracy(), report, Limits(cosine=0.9), {"one": budget}).verdict == word


def test_the_size_of_an_engine_is_known_whatever_else_ran() -> None:
    report = latency(complaints=["another process used the GPU"])
    assert evaluate_gates(accuracy(), report, Limits(cosine=0.9), {"one": Budget(engine_mib=9)}).verdict == "pass"


def test_an_engine_that_was_not_run_is_unmeasured_and_says_why() -> None:
    verdict = evaluate_gates(
        None, None, Limits(cosine=0.9), {"one": Budget(p50_ms=1)}, unmeasured_because="there is no GPU here"
    )
    assert verdict.verdict == "unmeasured"
    assert verdict.checks[0].message == "Not run: there is no GPU here."


def test_a_missing_measurement_of_a_budget_can_not_pass() -> None:
    assert evaluate_gates(accuracy(), None, Limits(cosine=0.9), {"one": Budget(p50_ms=1)}).verdict == "unmeasured"


def test_a_fail_outranks_everything_else() -> None:
    assert evaluate_gates(accuracy(), None, Limits(cosine=0.999), {"one": Budget(p50_ms=1)}).verdict == "fail"


ERRORS = {"name": "word error rate", "kind": "labels", "samples": 50, "engine": 0.12, "reference": 0.10, "ratio": 0.10 / 0.12,
          "lower_is_better": True}  # fmt: skip


@pytest.mark.parametrize(
    ("limits", "word", "said"),
    [
        (Limits(metric=0.13), "pass", "limit at most 0.13, smaller is better."),
        (Limits(metric=0.11), "fail", "limit at most 0.11, smaller is better."),
        (Limits(metric_ratio=0.8), "pass", "(ratio 0.833333), limit at most fp32 / 0.8, smaller is better."),
        (Limits(metric_ratio=0.9), "fail", "(ratio 0.833333), limit at most fp32 / 0.9, smaller is better."),
        (Limits(metric_delta=0.03), "pass", "limit a difference of 0.03 at most."),
        (Limits(metric_delta=0.01), "fail", "limit a difference of 0.01 at most."),
        (Limits(metric_between=(0.1, 0.2)), "pass", "limit 0.1 to 0.2."),
        (Limits(metric_between=(0.2, 0.3)), "fail", "limit 0.2 to 0.3."),
    ],
    ids=str,
)
def test_error_rates_are_better_when_smaller(limits: Limits, word: str, said: str) -> None:
    (check,) = [
        c for c in evaluate_gates(accuracy() | {"metric": ERRORS}, None, limits, {}).checks if "metric" in c.name
    ]
    assert check.verdict == word
    assert check.message.startswith("word error rate on 50 labelled samples: 0.12, fp32 0.1")
    assert check.message.endswith(said)


@pytest.mark.parametrize("limits", [Limits(metric_delta=1), Limits(metric_between=(-9, 9)), Limits(metric=9)], ids=str)
def test_a_metric_that_is_no_number_fails_every_limit(limits: Limits) -> None:
    report = accuracy() | {"metric": ERRORS | {"engine": None, "ratio": None}}
    assert evaluate_gates(report, None, limits, {}).verdict == "fail"


@pytest.mark.parametrize(
    ("limits", "engine", "reference"),
    [
        (Limits(metric_delta=0.01), 0.97, 0.98),  # .010000000000000009 to a computer
        (Limits(metric_ratio=0.99), 0.792, 0.8),
        (Limits(metric=0.3), 0.1 * 3, 0.5),
        (Limits(metric_between=(0.1 * 3, 0.7)), 0.3, 0.5),
        (Limits(metric_between=(0.1, 0.3)), 0.1 * 3, 0.5),
    ],
    ids=str,
)
def test_a_limit_that_is_met_exactly_is_met(limits: Limits, engine: float, reference: float) -> None:
    metric = METRIC | {"engine": engine, "reference": reference, "ratio": engine / reference}
    assert evaluate_gates(accuracy() | {"metric": metric}, None, limits, {}).verdict == "pass"


def test_a_limit_that_is_missed_by_one_sample_in_a_million_is_missed() -> None:
    metric = METRIC | {"engine": 0.989999, "reference": 1.0, "ratio": 0.989999}
    assert evaluate_gates(accuracy() | {"metric": metric}, None, Limits(metric_ratio=0.99), {}).verdict == "fail"
    assert evaluate_gates(accuracy(cosine=0.9899999), None, Limits(cosine=0.99), {}).verdict == "fail"


@pytest.mark.parametrize("reference", [0.0, -0.4])
def test_a_ratio_to_nothing_fails_and_says_what_to_use(reference: float) -> None:
    metric = METRIC | {"engine": 0.0, "reference": reference, "ratio": None}
    (check,) = evaluate_gates(accuracy() | {"metric": metric}, None, Limits(metric_ratio=0.99), {}).failures
    assert "A ratio says nothing where fp32 is not above zero: use metric, metric_delta" in check.message


@pytest.mark.parametrize("limits", [Limits(metric=0.5), Limits(metric=0.99), Limits(metric_ratio=0.9)], ids=str)
def test_a_metric_that_changes_its_mind_decides_nothing(limits: Limits) -> None:
    report = accuracy() | {"metric": METRIC | {"name": "own:score", "repeated": 0.91}}
    verdict = evaluate_gates(report, None, limits, {})
    assert verdict.verdict == "inconclusive"
    assert "own:score gave 0.98 and then 0.91 for the same outputs" in verdict.checks[-1].message


def test_a_class_that_is_lost_fails_though_the_mean_is_fine() -> None:
    dead = [{"class": n, "samples": 12, "reference": 11} for n in range(7)]
    report = accuracy() | {"metric": METRIC | {"dead_classes": dead[:1]}}
    (check,) = evaluate_gates(report, None, Limits(metric=0.5), {}).failures
    assert (check.name, check.message) == ("classes", "top1: lost class 0 (0 of 12 right, fp32 11).")
    report["metric"]["dead_classes"] = dead
    (check,) = evaluate_gates(report, None, Limits(metric=0.5), {}).failures
    assert check.message.endswith("class 4 (0 of 12 right, fp32 11) and 2 more.")
    report["metric"]["dead_classes"] = []
    assert evaluate_gates(report, None, Limits(metric=0.5), {}).verdict == "pass"


@pytest.mark.parametrize(
    ("pair", "word"),
    [(["float16", "float32"], "fail"), (["int64", "float32"], "fail"), (["float32", "float64"], "pass")],
)
def test_an_output_of_another_type_is_told_and_fails_unless_tensorrt_always_does_so(pair: list[str], word: str) -> None:
    verdict = evaluate_gates(accuracy(dtypes=pair), None, Limits(cosine=0.9), {})
    check = next(c for c in verdict.checks if c.name == "dtype[logits]")
    assert check.verdict == verdict.verdict == word
    assert check.message == f"logits: the engine gives {pair[0]}, the model {pair[1]}."
