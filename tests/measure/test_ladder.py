"""The ladder of `precisions: auto`: what is chosen, in what order, and why the others are not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from engineworks.builds.ladders import _candidate_of, ladders
from engineworks.builds.results import BuildResult, EngineResult, EngineVerdict, Failure, StepCounts
from engineworks.engines.backends import backend
from engineworks.errors import PatternError, PrecisionError, RecipeError
from engineworks.host.file_digests import FileDigests
from engineworks.measure.check import Check
from engineworks.measure.ladder.estimate import estimate_time
from engineworks.measure.ladder.ladder import Candidate, LadderTarget, TargetLadder, choose, ladder_statements
from engineworks.plan.plan import Plan, plan_recipe
from engineworks.recipe.auto import expand
from engineworks.recipe.load import load_recipe
from engineworks.report.ladder import ladder_tables
from engineworks.report.rows import rows
from engineworks.report.text import render_markdown
from engineworks.report.write import render_html
from engineworks.store.store import Store
from flows import local_steps
from tests.typed_reports import latency as report_with
from tests.typed_reports import shape_json

CPU = LadderTarget("cpu", relative_times=backend("onnxruntime").TRAITS.relative_times)
ADA = LadderTarget("rtx40", ("8.9",))


def passed(precision: str, latency_ms: float | None, **more: Any) -> Candidate:
    given = {"quality": 1.0, "bytes": 1000, **more}
    return Candidate(precision, "pass", f"r/{precision}/cpu", (precision,), latency_ms, **given)


def failed(precision: str, why: str = "cosine is 0.5.") -> Candidate:
    return Candidate(
        precision, "fail", f"r/{precision}/cpu", (precision,), 0.1, why=why, inaccurate=True, forgiven=True
    )


def unmeasured(precision: str, model_bytes: int | None = None) -> Candidate:
    return Candidate(precision, "unmeasured", f"r/{precision}/rtx40", (precision,), model_bytes=model_bytes)


def ladder(*candidates: Candidate, target: LadderTarget = CPU, **more: Any) -> TargetLadder:
    return choose(target, candidates, shape="one", **more)


def chosen(found: TargetLadder) -> str | None:
    return found.chosen.precision if found.chosen else None


def dropped(found: TargetLadder) -> dict[str, str]:
    return {r.precision: r.dropped for r in found.candidates if r.dropped}


def test_the_fastest_that_passes_is_chosen_and_the_others_follow_by_latency() -> None:
    found = ladder(passed("fp32", 3.0), passed("fp16", 2.0), passed("int8", 1.0))
    assert [r.precision for r in found.candidates] == ["int8", "fp16", "fp32"]
    assert chosen(found) == "int8"
    assert found.basis == "measured"
    assert dropped(found) == {
        "fp16": "is slower than int8: 2 ms against 1 ms", "fp32": "is slower than int8: 3 ms against 1 ms",
    }  # fmt: skip
    assert found.message == "cpu: int8, 1 ms at one, of 3 that passed."


def test_an_int8_that_is_slower_than_fp16_is_said_so_in_one_sentence_and_not_chosen() -> None:
    found = ladder(passed("fp32", 3.0), passed("fp16", 1.0), passed("int8", 1.5))
    assert chosen(found) == "fp16"
    assert found.message.endswith(" int8 is not faster than fp16: 1.5 ms against 1 ms.")


def test_an_int8_as_fast_as_fp16_is_not_chosen() -> None:
    found = ladder(passed("fp16", 1.0), passed("int8", 0.99))
    assert chosen(found) == "fp16"
    assert "no difference" in dropped(found)["int8"]


def test_an_int8_that_is_faster_by_more_than_a_tie_is_chosen() -> None:
    assert chosen(ladder(passed("fp16", 1.0), passed("int8", 0.97))) == "int8"


@pytest.mark.parametrize("order", [("fp32", "fp16", "int8"), ("int8", "fp16", "fp32")], ids="-".join)
def test_of_equally_fast_ones_the_most_faithful_is_chosen_in_whatever_order_they_come(order: tuple[str, ...]) -> None:
    found = ladder(*(passed(p, 1.0) for p in order))
    assert chosen(found) == "fp32"


def test_an_int8_that_is_slower_than_fp16_is_chosen_all_the_same_where_fp16_fails() -> None:
    found = ladder(passed("fp32", 3.0), failed("fp16"), passed("int8", 1.5))
    assert chosen(found) == "int8"


def test_an_int8_that_fails_falls_back_to_the_next_rung_and_names_the_command_that_finds_what_to_keep() -> None:
    found = ladder(passed("fp16", 2.0), passed("fp32", 3.0), failed("int8"), recipe="recipes/r.yaml")
    assert chosen(found) == "fp16"
    why = dropped(found)["int8"]
    assert why.startswith("fails its gate: cosine is 0.5.")
    assert why.endswith("engineworks sensitivity recipes/r.yaml --precision int8")
    assert why in found.message


def test_a_failure_that_is_none_of_accuracy_names_no_sensitivity() -> None:
    slow = replace(failed("int8", "one: median latency is 9 ms."), inaccurate=False)
    assert dropped(ladder(passed("fp16", 2.0), slow))["int8"] == "fails its gate: one: median latency is 9 ms."


def test_where_nothing_passes_nothing_is_chosen_and_nothing_forgiven() -> None:
    found = ladder(failed("fp32"), failed("fp16"))
    assert chosen(found) is None
    assert found.basis == "nothing"
    assert found.forgiven == frozenset()
    assert "no precision passes" in found.message


def test_an_unmeasured_gpu_target_is_ordered_by_an_estimate_that_says_so() -> None:
    found = ladder(*(unmeasured(p) for p in ("fp32", "fp16", "int8", "int4_weights")), target=ADA)
    assert [r.precision for r in found.candidates] == ["int8", "int4_weights", "fp16", "fp32"]
    assert found.basis == "estimated"
    assert "estimated" in found.message
    assert all("estimate" in r.dropped for r in found.candidates if not r.chosen)
    assert str(found.to_json()["estimate"]).startswith("estimated")
    assert ladder_statements([found])["r/int8/rtx40"] == "chosen by estimate"


def test_what_was_measured_and_passed_beats_whatever_is_only_estimated() -> None:
    found = ladder(passed("fp16", 2.0), unmeasured("int8"))
    assert chosen(found) == "fp16"
    assert dropped(found)["int8"].startswith("is unmeasured")


def test_a_rung_that_failed_on_another_target_is_not_chosen_unseen() -> None:
    found = ladder(unmeasured("fp16"), unmeasured("int8"), target=ADA, inaccurate={"int8": "failed on cpu: cosine."})
    assert chosen(found) == "fp16"
    assert "failed on cpu: cosine." in dropped(found)["int8"]
    assert "engineworks sensitivity" in dropped(found)["int8"]


def test_an_unseen_choice_says_where_else_it_passed() -> None:
    found = ladder(unmeasured("fp16"), unmeasured("int8"), target=ADA, passed_on={"int8": "cpu"})
    assert "no engine of it ran here (on cpu it passed)" in found.message


def test_engines_that_pass_without_a_latency_are_ordered_by_estimate() -> None:
    found = ladder(passed("int8", None), passed("fp32", None))
    assert (chosen(found), found.basis) == ("fp32", "estimated")
    assert "its latency was not measured" in found.message


def test_pareto_holds_those_that_nothing_beats_in_quality_latency_and_size() -> None:
    found = ladder(
        passed("fp32", 3.0, quality=1.0, bytes=400), passed("fp16", 1.0, quality=1.0, bytes=200),
        passed("int8", 1.5, quality=0.99, bytes=100), passed("int8_weights", 2.0, quality=0.99, bytes=100),
    )  # fmt: skip
    assert {r.precision for r in found.candidates if r.pareto} == {"fp16", "int8"}


def test_the_estimate_weighs_arithmetic_and_bytes() -> None:
    assert estimate_time({}, ["8.9"], ("fp16",), 100, 100) == 1.0
    assert estimate_time({}, ["8.9"], ("int8", "fp16"), 60, 100) == pytest.approx((0.5 + 0.6) / 2)
    assert estimate_time({}, ["8.9"], ("int8", "fp16"), None, 100) == 0.5
    assert estimate_time({}, ["8.0"], ("fp32",), None, None) > 2


def test_on_hopper_int8_is_not_expected_to_be_faster_than_fp16() -> None:
    """BERT-base in int8 has 61% of fp16's bytes, and takes 1.08 (batch 1) to 1.64 (batch 32) of its time there."""
    assert estimate_time({}, ["9.0"], ("int8", "fp16"), 61, 100) > 1.0
    assert estimate_time({}, ["9.0"], ("fp16",), 100, 100) == 1.0


# --- recipes that say auto


def edit(repository: Path, *pairs: tuple[str, str]) -> None:
    path = repository / "recipes" / "tiny.yaml"
    text = path.read_text(encoding="utf-8")
    for old, new in pairs:
        assert old in text, old
        text = text.replace(old, new, 1)
    path.write_text(text, encoding="utf-8")


AUTO = ("precisions: [fp32, int8]", "precisions: auto")


def plan(repository: Path, only: str | None = None) -> Plan:
    loaded = load_recipe(repository / "recipes" / "tiny.yaml")
    return plan_recipe(loaded, Store(repository / "artifacts" / "store"), FileDigests(None), only=only)


def engine(
    name: str, verdict: EngineVerdict, failure: Failure | None = None, check: str = "cosine[logits]"
) -> EngineResult:
    gate = Check(check, "pass" if verdict == "failed" else verdict, "It says so.")
    one = shape_json(1.0 if "int8/" in name else 2.0)
    latency = report_with({"one": one}) if verdict == "pass" else None
    return EngineResult(name, verdict, () if failure else (gate,), latency=latency, failure=failure)


def result(plan: Plan, **verdicts: EngineVerdict | EngineResult) -> BuildResult:
    """Every engine of the plan passes, but for those that are named otherwise by precision."""
    words = {e.id: verdicts.get(e.precision, "pass") for e in plan.engines}
    engines = tuple(w if isinstance(w, EngineResult) else engine(i, w) for i, w in words.items())
    store = Store(Path("artifacts/store"))
    found = ladders(plan, engines, store)
    return BuildResult(plan.recipe, "run1", engines, plan.refused, StepCounts(), ladder=found)


@pytest.mark.parametrize("written", ["auto", "[auto]"])
def test_auto_becomes_what_each_target_has(repository: Path, written: str) -> None:
    edit(repository, ("[fp32, int8]", written), ("[cpu]", "[cpu, rtx40]"))
    found = plan(repository)
    on_cpu = [e.precision for e in found.engines if e.target.name == "cpu"]
    assert on_cpu == ["fp32", "fp16", "int8", "int8_weights", "int4_weights"]
    assert {r.id for r in found.refused} >= {"tiny/bf16/cpu", "tiny/fp8/cpu"}
    assert {"tiny/fp8/rtx40", "tiny/bf16/rtx40"} <= {e.id for e in found.engines}
    assert found.to_json()["auto"] is True


def test_every_precision_that_auto_tries_has_limits_the_recipes_own_where_it_has_them(repository: Path) -> None:
    edit(repository, AUTO)
    loaded = load_recipe(repository / "recipes" / "tiny.yaml")
    limits = loaded.recipe.accuracy.limits
    assert limits["int8"].cosine == 0.98
    assert limits["int8"].metric_ratio is None
    assert limits["fp8"].metric_ratio == 0.99
    assert limits["fp16"].cosine == 0.9999
    assert loaded.auto is not None
    assert loaded.auto.built_in == {"fp16", "bf16", "fp8", "int8_weights", "int4_weights"}


def test_without_calibration_data_auto_leaves_out_what_needs_it_and_says_why(repository: Path) -> None:
    edit(repository, AUTO, ("  calibration: {npz: calib.npz}\n", ""))
    found = result(plan(repository))
    (cpu,) = found.ladder
    assert "int8" not in {e.id.split("/")[1] for e in found.engines}
    assert dropped(cpu)["int8"].startswith("was not tried: it needs calibration data")


def test_a_mixture_may_stand_beside_auto(repository: Path) -> None:
    edit(
        repository, ("[fp32, int8]", "[auto, mine]"), ("    int8: {c", "    mine: {cosine: 0.9}\n    int8: {c"),
        ("targets:", "mixtures: {mine: {int8: [conv]}}\ntargets:"),
    )  # fmt: skip
    assert "tiny/mine/cpu" in {e.id for e in plan(repository).engines}


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("[auto, int8]", "10:20: precisions: 'auto' tries int8 anyway; remove one of the two"),
        ("atuo", "10:13: precisions: 'atuo' is not allowed"),
        ("[atuo]", "10:14: precisions: 'atuo' is not a choice; did you mean 'auto'?"),
        ("[auto, auto]", "duplicate 'auto' in precisions"),
    ],
)
def test_what_is_wrong_with_auto_is_said_at_its_place(repository: Path, written: str, message: str) -> None:
    edit(repository, ("[fp32, int8]", written))
    with pytest.raises(RecipeError) as error:
        load_recipe(repository / "recipes" / "tiny.yaml")
    assert message in str(error.value)


def test_a_recipe_without_auto_stays_as_it_is_and_has_no_ladder(repository: Path) -> None:
    loaded = load_recipe(repository / "recipes" / "tiny.yaml")
    assert loaded.auto is None
    assert expand(loaded.recipe) == (loaded.recipe, None)
    found = result(plan(repository), int8="fail")
    assert found.ladder == ()
    assert found.to_json()["ladder"] is None
    assert found.exit_code() == 1


def test_a_rung_that_fails_its_gate_fails_no_build(repository: Path) -> None:
    edit(repository, AUTO)
    found = result(plan(repository), int8="fail", int4_weights="inconclusive")
    assert found.exit_code(require_verdict=True) == 0
    assert found.verdict == "pass"
    words = ladder_statements(found.ladder)
    assert words["tiny/fp32/cpu"] == "chosen"
    assert words["tiny/int8/cpu"].startswith("dropped: fails its gate: It says so.")


def test_where_nothing_passes_the_build_fails_with_exit_1(repository: Path) -> None:
    edit(repository, AUTO)
    every: dict[str, Any] = {e.precision: "fail" for e in plan(repository).engines}
    found = result(plan(repository), **every)
    assert found.exit_code() == 1
    assert found.to_json()["ladder"][0]["chosen"] is None


def test_one_target_without_a_rung_fails_the_build_whatever_the_other_has(repository: Path) -> None:
    edit(repository, AUTO, ("[cpu]", "[cpu, second]"))
    targets = repository / "recipes" / "_targets.yaml"
    targets.write_text(targets.read_text() + "  second: {backend: onnxruntime, pool: second}\n", encoding="utf-8")
    planned = plan(repository)
    found = result(planned)
    engines = tuple(e if e.id.endswith("/cpu") else engine(e.id, "fail") for e in found.engines)
    found = replace(found, engines=engines, ladder=ladders(planned, engines, Store(Path("artifacts/store"))))
    assert [chosen(one) for one in found.ladder] == ["int8", None]
    assert found.exit_code() == 1


@pytest.mark.parametrize(
    ("step", "code", "expected"),
    [("build", 4, 0), ("lower-unquantized-fp16", 4, 0), ("calibrate", 2, 2), ("compare", 4, 4), ("build", 70, 70)],
)
def test_a_model_that_can_not_be_had_in_a_precision_is_a_dropped_rung_other_failures_are_not(
    repository: Path, step: str, code: int, expected: int
) -> None:
    edit(repository, AUTO)
    broken = engine("tiny/fp16/cpu", "failed", Failure(f"tiny/fp16/cpu/{step}", "it overflows", exit_code=code))
    found = result(plan(repository), fp16=broken)
    assert found.exit_code() == expected
    assert dropped(found.ladder[0])["fp16"] == "failed: it overflows"


def test_a_precision_that_does_not_apply_to_the_model_is_dropped_with_its_reason(repository: Path) -> None:
    edit(repository, AUTO)
    why = "tiny/int4_weights/lower: no node can compute in int4_weights (fc: its weight 'w' has 6 rows)"
    failure = Failure("tiny/int4_weights/lower", f"{why}; remove int4_weights from precisions", "", 2, why)
    found = result(plan(repository), int4_weights=engine("tiny/int4_weights/cpu", "failed", failure))
    assert found.exit_code(require_verdict=True) == 0
    assert dropped(found.ladder[0])["int4_weights"] == f"cannot be built: {why}"
    assert "dropped: cannot be built: tiny/int4_weights/lower: no node can compute in" in render_markdown(found)


def test_where_no_precision_applies_the_build_fails_as_before(repository: Path) -> None:
    edit(repository, AUTO)
    names = {e.precision: e.id for e in plan(repository).engines}
    failure = Failure(
        "tiny/lower", "the model itself computes in float16", "", 2, "the model itself computes in float16"
    )
    every: dict[str, Any] = {p: engine(name, "failed", failure) for p, name in names.items()}
    assert result(plan(repository), **every).exit_code() == 2


def test_a_pattern_that_names_no_node_is_the_recipes_fault_and_drops_nothing(repository: Path) -> None:
    edit(repository, AUTO)
    build = SimpleNamespace(failures={})
    schedule = SimpleNamespace(failed=lambda key: None)
    step = SimpleNamespace(id="tiny/int8/lower", key="k")
    for error, expected in ((PatternError("keep: 'x' matches no node"), 2), (PrecisionError("it overflows"), 0)):
        local_steps._take(cast(Any, build), cast(Any, schedule), cast(Any, step), error)
        found = result(plan(repository), int8=engine("tiny/int8/cpu", "failed", build.failures["k"]))
        assert found.exit_code() == expected


def test_what_only_left_out_is_no_rung_that_was_tried(repository: Path) -> None:
    edit(repository, AUTO, ("[cpu]", "[cpu, rtx40]"))
    found = result(plan(repository, only="tiny/fp32/cpu"))
    assert [one.target for one in found.ladder] == ["cpu"]
    assert dropped(found.ladder[0])["int8"] == "was not tried: --only left it out"


def test_the_build_key_knows_that_a_ladder_was_asked_for(repository: Path) -> None:
    edit(repository, AUTO)
    found = plan(repository)
    assert found.build_key != replace(found, loaded=replace(found.loaded, auto=None)).build_key


def test_reports_show_the_ladder_its_reasons_and_a_plot(repository: Path) -> None:
    edit(repository, AUTO)
    found = result(plan(repository), int8="fail")
    measured = ladder(
        passed("fp32", 3.0), passed("fp16", 1.0, metric=0.93), replace(failed("int8"), quality=0.5, bytes=3)
    )
    found = replace(found, ladder=(measured,))
    (shown,) = ladder_tables(found.ladder)
    assert shown.table.rows[shown.table.marked or 0][0].text == "fp16"
    html, text = render_html(found), render_markdown(found)
    for page in (html, text):
        assert "Ladder of cpu" in page
        assert "dropped: fails its gate: cosine is 0.5." in page
    assert html.count("<svg") == 1
    assert "fp16: 1.00 ms, 0.00 MiB, chosen" in html
    assert "int8: 0.100 ms, 0.00 MiB, fail" in html
    assert "http:" not in html
    assert (
        next(r for r in rows(result(plan(repository), int8="fail")) if r.cells[0] == "tiny/int8/cpu")
        .cells[-1]
        .startswith("dropped: ")
    )
    alone = render_html(replace(found, ladder=(ladder(passed("fp32", 3.0)),)))
    assert "<svg" not in alone, "one precision is no choice"


@pytest.mark.parametrize("check", ["classes", "synthetic_cosine[y]", "token_agreement", "metric_ratio"])
def test_a_precision_that_loses_too_much_is_inaccurate_whichever_check_finds_it(check: str) -> None:
    """Elsewhere it must not be chosen unseen."""
    planned: Any = SimpleNamespace(precision="int8", computes=("int8",))
    engine = EngineResult("r/int8/cpu", "fail", (Check(check, "fail", "too much is lost."),))
    assert _candidate_of(planned, engine).inaccurate
