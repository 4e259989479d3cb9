"""Waivers: a named failure, and nothing else, is accepted until the day it says; and everybody sees it."""

from __future__ import annotations

from datetime import UTC, date, datetime

import pytest

from engineworks.builds.results import BuildResult, EngineResult, StepCounts
from engineworks.builds.to_mlflow import engine_record
from engineworks.measure.check import Check, CheckVerdict
from engineworks.measure.gates.gates import Verdict
from engineworks.measure.waivers import apply_waivers, idle_waivers, names_check
from engineworks.plan.plan import Plan, Refused
from engineworks.recipe.recipe import Waiver
from engineworks.report.text import render_markdown
from engineworks.report.write import render_html

TODAY = date(2027, 1, 31)


def waiver(check: str = "cosine[logits]", engine: str = "*", expires: date = TODAY, owner: str = "ana@x.org") -> Waiver:
    return Waiver(check=check, engine=engine, owner=owner, reason="old camera", expires=expires)


def verdict(*checks: tuple[str, CheckVerdict]) -> Verdict:
    found = tuple(Check(name, word, f"{name} is what it is.") for name, word in checks)
    return Verdict("fail" if "fail" in [w for _, w in checks] else "pass", found)


FAILED = verdict(("cosine[logits]", "fail"), ("p50_ms[one]", "pass"))


def test_a_waived_failure_stays_a_fail_and_the_engine_passes() -> None:
    found = apply_waivers(FAILED, [waiver()], "r/int8/cpu", TODAY)
    assert found.verdict == "pass"
    assert found.failures == ()
    check = found.checks[0]
    assert (check.verdict, check.message) == ("fail", "cosine[logits] is what it is.")
    assert check.waived == "waived by ana@x.org until 2027-01-31: old camera"
    assert check.to_json()["waived"] == check.waived


def test_the_day_after_it_expired_it_changes_nothing_and_the_sentence_says_so() -> None:
    found = apply_waivers(FAILED, [waiver()], "r/int8/cpu", date(2027, 2, 1))
    assert found.verdict == "fail"
    assert found.checks[0].waived == ""
    assert found.checks[0].message.endswith(" The waiver by ana@x.org expired on 2027-01-31.")


def test_another_failure_still_fails() -> None:
    both = verdict(("cosine[logits]", "fail"), ("metric_ratio", "fail"))
    assert apply_waivers(both, [waiver()], "r/int8/cpu", TODAY).verdict == "fail"
    assert apply_waivers(both, [waiver(), waiver("metric*")], "r/int8/cpu", TODAY).verdict == "pass"


@pytest.mark.parametrize(
    ("engine", "word"), [("int8/*", "pass"), ("*/cpu", "pass"), ("fp16/*", "fail"), ("r/*", "fail")]
)
def test_a_waiver_is_for_the_engines_that_it_names(engine: str, word: str) -> None:
    assert apply_waivers(FAILED, [waiver(engine=engine)], "r/int8/cpu", TODAY).verdict == word


@pytest.mark.parametrize("word", ["inconclusive", "unmeasured"])
def test_what_is_not_known_can_not_be_waived(word: CheckVerdict) -> None:
    open_ = Verdict(word, (Check("cosine[logits]", word, "Not known."),))
    assert apply_waivers(open_, [waiver()], "r/int8/cpu", TODAY) == open_


def test_a_pass_needs_no_waiver_and_gets_none() -> None:
    passed = verdict(("cosine[logits]", "pass"))
    assert apply_waivers(passed, [waiver()], "r/int8/cpu", TODAY) == passed


def test_of_two_waivers_the_longer_counts() -> None:
    old, new = waiver(expires=date(2026, 1, 1), owner="old@x.org"), waiver(owner="new@x.org")
    for waivers in ([old, new], [new, old]):
        assert "new@x.org" in apply_waivers(FAILED, waivers, "r/int8/cpu", TODAY).checks[0].waived


@pytest.mark.parametrize(
    ("pattern", "name", "named"),
    [
        ("cosine[logits]", "cosine[logits]", True),
        ("cosine[logits]", "cosinel", False),
        ("cosine[*]", "cosine[logits]", True),
        ("*[logits]", "max_abs[logits]", True),
        ("cosine", "cosine[logits]", False),
        ("p?0_ms[one]", "p90_ms[one]", True),
    ],
)
def test_brackets_are_brackets_and_only_stars_and_question_marks_are_wild(pattern: str, name: str, named: bool) -> None:
    assert names_check(pattern, name) is named


def test_a_waiver_is_shown_wherever_the_verdict_is() -> None:
    checks = apply_waivers(FAILED, [waiver()], "r/int8/cpu", TODAY).checks
    engine = EngineResult("r/int8/cpu", "pass", checks)
    result = BuildResult("r", "run1", (engine,), (Refused("r/bf16/cpu", "no"),), StepCounts())
    words = "waived by ana@x.org until 2027-01-31: old camera"
    assert result.exit_code(require_verdict=True) == 0
    assert engine.to_json()["waived"] == [f"cosine[logits] {words}"]
    for page in (render_markdown(result), render_html(result)):
        assert "pass (waived)" in page
        assert page.count(words) >= 2  # in the table and beside the check
    record = engine_record_of(engine)
    assert record.tags["engineworks.verdict"] == "pass"
    assert record.tags["engineworks.waived"] == f"cosine[logits] {words}"
    assert words in record.texts["verdict.json"]


def engine_record_of(engine: EngineResult):  # type: ignore[no-untyped-def]
    from types import SimpleNamespace

    performance = SimpleNamespace(budget={}, regression=None)
    limits = SimpleNamespace(accuracy=SimpleNamespace(limits={}), performance=performance)
    plan = SimpleNamespace(
        loaded=SimpleNamespace(recipe=limits, files=SimpleNamespace(evaluation=None, calibration=None)),
        steps={}, needed=lambda keys: (), closure=lambda keys: set(),
    )  # fmt: skip
    return engine_record(plan, engine)  # type: ignore[arg-type]


PASSED, OPEN = (Check("cosine[logits]", "pass", "Good."),), (Check("cosine[logits]", "inconclusive", "Not known."),)


@pytest.mark.parametrize(
    ("check", "checks", "words"),
    [
        ("cosine[logits]", FAILED.checks, ""),
        ("cosine", FAILED.checks, ": no check has this name; there are cosine[logits], p50_ms[one]"),
        ("cosine[*", PASSED, " is not needed: what it names passes; take it out of the recipe"),
        ("cosine[*", OPEN, " changes nothing: only a fail can be waived, and this is inconclusive"),
    ],
)
def test_a_waiver_that_lets_nothing_through_is_told(check: str, checks: tuple[Check, ...], words: str) -> None:
    found = idle_waivers([waiver(check)], [("r/int8/cpu", checks)], TODAY)
    assert found == ([f"waiver of '{check}' for '*' by ana@x.org{words}"] if words else [])
    assert idle_waivers([waiver(check, "fp16/*")], [("r/int8/cpu", checks)], TODAY) == []  # it was not built
    assert idle_waivers([waiver(check)], [("r/int8/cpu", ())], TODAY) == []  # it was not judged


def test_an_expired_waiver_that_nobody_needs_says_both() -> None:
    (found,) = idle_waivers([waiver()], [("r/int8/cpu", PASSED)], date(2027, 2, 1))
    assert "is not needed and expired on 2027-01-31" in found


def test_the_day_is_that_of_utc_wherever_the_host_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    for zone in ("Pacific/Kiritimati", "Pacific/Pago_Pago"):
        monkeypatch.setenv("TZ", zone)
        time.tzset()
        try:
            assert Plan(None, (), ()).today == datetime.now(UTC).date()  # type: ignore[arg-type]
        finally:
            monkeypatch.delenv("TZ")
            time.tzset()
