"""Checks on a served package, from reports as the step writes them."""

from __future__ import annotations

from typing import Any

import pytest

from engineworks.measure.check import Check, CheckVerdict
from engineworks.measure.gates.serving import load_verdict, serving_checks
from tests.typed_reports import ANSWERS, load_json, serving

LIMITS = {"qps": 100.0, "find_qps": False, "p99_ms": 15.0, "seconds": 60.0}
LOAD = load_json()
REFUSAL = {"what": "dtype", "refused": True, "words": "", "right_after": True}
REPORT: dict[str, Any] = {
    "answers": {"http": ANSWERS, "grpc": ANSWERS}, "refusals": [REFUSAL],
    "metric": {"name": "top1", "judged": 0.99, "served": 0.99}, "load": LOAD,
}  # fmt: skip


def words(report: dict[str, Any], limits: Any = LIMITS) -> dict[str, CheckVerdict]:
    return {check.name: check.verdict for check in serving_checks(serving(**report), limits, "")}


def test_a_package_that_answers_as_the_engine_does_passes_every_check() -> None:
    assert set(words(REPORT).values()) == {"pass"}
    assert "served.load" not in words(REPORT, None)


def test_without_a_server_it_is_unmeasured_with_the_reason() -> None:
    (check,) = serving_checks(None, None, "no Triton server was found")
    assert (check.verdict, check.message) == ("unmeasured", "The package was not served: no Triton server was found.")


@pytest.mark.parametrize(
    ("change", "failed"),
    [
        ({"answers": {"grpc": {**ANSWERS, "worst": {"y": 0.01}}}}, "served.answers[grpc]"),
        ({"answers": {"grpc": {**ANSWERS, "worst": {"y": None}}}, "spread": 1.0}, "served.answers[grpc]"),
        ({"answers": {"http": {**ANSWERS, "errors": ["refused"]}}}, "served.answers[http]"),
        ({"answers": {"http": {**ANSWERS, "worst": {}}}}, "served.answers[http]"),
        ({"metric": {"name": "top1", "judged": 0.99, "served": 0.97}}, "served.metric"),
        ({"metric": {"name": "top1", "judged": 0.99, "served": None}}, "served.metric"),
        ({"refusals": [{**REFUSAL, "refused": False}]}, "served.refusals"),
        ({"refusals": [{**REFUSAL, "right_after": False}]}, "served.refusals"),
        ({"load": {**LOAD, "latency_ms_p99": 16.0}}, "served.load"),
        ({"load": {**LOAD, "errors": 1, "first_error": "gone"}}, "served.load"),
        ({"load": {**LOAD, "completed_per_s": 80.0}}, "served.load"),
        ({"load": {"tries": [], "rate": 0.0}}, "served.load"),
    ],
)
def test_each_fault_fails_its_own_check(change: dict[str, Any], failed: str) -> None:
    assert [name for name, word in words(REPORT | change).items() if word != "pass"] == [failed]
    assert words(REPORT | change)[failed] == "fail"


def test_what_batching_changes_in_the_engine_itself_is_no_fault_of_the_server() -> None:
    report = REPORT | {"answers": {"grpc": {**ANSWERS, "worst": {"y": 0.01}}}, "spread": 0.005}
    assert set(words(report).values()) == {"pass"}


@pytest.mark.parametrize("change", [{"others": 0.5}, {"queries": 100}, {"queries": 100, "latency_ms_p99": 99.0}])
def test_a_load_on_a_busy_host_or_of_too_few_queries_decides_nothing(change: dict[str, Any]) -> None:
    word, sentence = load_verdict(serving(load=LOAD | change).load, LIMITS)
    assert word == "inconclusive"
    assert "other programs" in sentence or "563 are enough" in sentence


def test_a_search_passes_with_the_rate_that_it_found() -> None:
    found = {"tries": [LOAD], "rate": 240.0}
    assert load_verdict(serving(load=found).load, LIMITS) == (
        "pass",
        "The largest rate within 15 ms is 240 queries a second.",
    )


def test_a_recorded_check_is_read_as_it_was_written() -> None:
    checks = serving_checks(serving(**REPORT), LIMITS, "")
    assert [Check.from_json(check.to_json()) for check in checks] == checks
