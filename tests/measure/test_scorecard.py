"""What other versions change: verdicts, speed with intervals, size, outputs."""

from __future__ import annotations

from typing import Any

from engineworks.measure.regression import Comparison
from engineworks.measure.scorecard import compare_builds
from engineworks.measure.statistics import Interval


def engine(name: str = "tiny/int8/cpu", verdict: str = "pass", **changed: Any) -> dict[str, Any]:
    p50 = changed.pop("p50", 1.0)
    values = {"latency_ms_p50": p50, "latency_ms_p90": p50 * 1.2, "median_interval": [p50 * 0.98, p50 * 1.02]}
    cosine = changed.pop("cosine", 0.9998)
    accuracy = {"outputs": {"y": {"cosine": cosine}}, "metric": {"engine": changed.pop("metric", 0.9), "samples": 100}}
    return {
        "id": name, "verdict": verdict, "checks": [], "error": None, "bytes": 1000, "accuracy": accuracy,
        "latency": {"one": values}, **changed,
    }  # fmt: skip


def build(*engines: dict[str, Any], refused: tuple[tuple[str, str], ...] = ()) -> list[dict[str, Any]]:
    return [{"engines": list(engines), "refused": [{"id": i, "message": s} for i, s in refused]}]


def words(before: dict[str, Any], after: dict[str, Any]) -> tuple[str, ...]:
    (change,) = compare_builds(build(before), build(after))
    return (change.tone, *change.notes)


def test_what_is_within_the_intervals_is_no_change() -> None:
    assert words(engine(), engine(p50=1.06, bytes=1010, cosine=0.99975)) == ("same",)


def test_slower_and_faster_come_with_the_interval_of_their_ratio() -> None:
    assert words(engine(), engine(p50=1.2)) == ("worse", "slower at one: 1 → 1.2 ms, × 1.20 (1.15 to 1.25)")
    assert words(engine(p50=1.2), engine())[0] == "better"
    busy = engine(p50=1.2)
    busy["latency"]["one"]["complaints"] = ["other processes ran"]
    assert words(engine(), busy) == (
        "changed", "slower at one: 1 → 1.2 ms, × 1.20 (1.15 to 1.25), while the host was busy"
    )  # fmt: skip


def test_sizes_and_outputs_that_change_are_told() -> None:
    assert words(engine(bytes=2**20), engine(bytes=3 * 2**20)) == ("worse", "larger: 1.00 → 3.00 MiB")
    assert words(engine(), engine(cosine=0.999)) == ("worse", "y changed: cosine 0.9998 → 0.999")
    assert words(engine(), engine(cosine=None)) == ("worse", "y: not finite on one side")
    tone, said = words(engine(), engine(metric=0.91))
    assert (tone, said.startswith("metric 0.9 → 0.91 (±")) == ("changed", True)


def test_a_verdict_that_turns_is_told_with_its_reason() -> None:
    check = {"name": "cosine[y]", "verdict": "fail", "message": "y: cosine is 0.9."}
    assert words(engine(), engine(verdict="fail", checks=[check])) == ("worse", "pass → fail: y: cosine is 0.9.")
    assert words(engine(verdict="fail"), engine()) == ("better", "fail → pass")
    assert words(engine(), engine(verdict="failed", error="it crashed"))[1] == "pass → failed: it crashed"


def test_refused_engines_and_the_worst_come_first() -> None:
    before = build(engine("a/int8/cpu"), engine("a/fp8/cpu"))
    after = build(engine("a/int8/cpu"), refused=(("a/fp8/cpu", "fp8 needs 8.9."),))
    first, second = compare_builds(before, after)
    assert (first.engine, first.rehearsed, first.notes) == ("a/fp8/cpu", "refused", ("pass → refused: fp8 needs 8.9.",))
    assert second.tone == "same"


def turns(ratio: float, low: float, high: float, why: str = "") -> dict[str, Any]:
    verdict: Any = "inconclusive" if why else "pass"
    return {"tiny/int8/cpu": {"one": Comparison(verdict, ratio, Interval(low, high), 15, why)}}


def test_versions_in_turns_decide_instead_of_two_measurements() -> None:
    def said(p50: float, found: Any) -> tuple[str, ...]:
        (change,) = compare_builds(build(engine()), build(engine(p50=p50)), found)
        return (change.tone, *change.notes)

    assert said(1.3, turns(1.0, 0.98, 1.02)) == ("same",)
    assert said(1.0, turns(1.2, 1.1, 1.3)) == ("worse", "slower at one: 1 → 1 ms, × 1.20 (1.10 to 1.30)")
    straddles = turns(1.04, 1.0, 1.08, "the interval straddles the limit")
    assert said(1.0, straddles)[1].startswith("undecided at one")
    assert said(1.0, straddles)[0] == "changed"
    disturbed = turns(1.2, 1.1, 1.3, "9 of 12 rounds were disturbed (other processes)")
    assert said(1.0, disturbed)[0] == "changed"
    nothing = {"tiny/int8/cpu": {"one": Comparison("inconclusive", None, None, 0, "0 rounds")}}
    assert said(1.3, nothing)[0] == "changed"
