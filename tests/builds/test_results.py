"""Exit codes and rows of builds."""

from __future__ import annotations

import pytest

from engineworks.builds.results import BuildResult, EngineResult, EngineVerdict, Failure, StepCounts, worst_exit_code
from engineworks.builds.to_mlflow import result_tags
from engineworks.measure.check import Check
from engineworks.plan.plan import Refused
from engineworks.report.answer import may_ship
from engineworks.report.rows import rows
from engineworks.report.text import render_markdown
from engineworks.report.write import render_html


def engine(verdict: EngineVerdict, name: str = "e", exit_code: int = 4) -> EngineResult:
    failure = Failure("r/e/build", "it <broke> | badly", exit_code=exit_code) if verdict == "failed" else None
    check = Check("cosine", "fail" if verdict == "fail" else "pass", "0.5 is too little.")
    return EngineResult(f"r/{name}/cpu", verdict, () if failure else (check,), failure=failure)


def result(*engines: EngineResult) -> BuildResult:
    return BuildResult("r", "run1", engines, (Refused("r/bf16/cpu", "no bf16 here"),), StepCounts(1, 2, 3))


@pytest.mark.parametrize(
    ("words", "code", "required"),
    [
        (["pass", "pass"], 0, 0),
        (["pass", "fail"], 1, 1),
        (["pass", "unmeasured"], 0, 3),
        (["inconclusive", "unmeasured"], 3, 3),
        (["fail", "inconclusive"], 1, 1),
        (["failed", "fail"], 4, 4),
    ],
    ids=str,
)
def test_the_exit_code_is_that_of_the_most_severe(words: list[EngineVerdict], code: int, required: int) -> None:
    found = result(*(engine(w) for w in words))
    assert found.exit_code() == code
    assert found.exit_code(require_verdict=True) == required


@pytest.mark.parametrize(
    ("words", "verdict", "reply"),
    [
        (["pass", "unmeasured"], "pass", "Yes"),
        (["unmeasured", "unmeasured"], "unmeasured", "Not yet"),
        (["inconclusive", "unmeasured", "pass"], "inconclusive", "In part"),
        (["fail", "unmeasured"], "fail", "No"),
        (["failed", "fail", "pass"], "failed", "In part"),
        ([], "unmeasured", "Not yet"),
    ],
    ids=str,
)
def test_the_verdict_on_record_is_what_the_first_line_of_every_screen_says(
    words: list[EngineVerdict], verdict: str, reply: str
) -> None:
    found = result(*(engine(w, f"e{i}") for i, w in enumerate(words)))
    assert result_tags(found)["engineworks.verdict"] == verdict
    assert may_ship(found).reply == reply


def test_bad_input_found_by_a_step_is_exit_2_unless_a_step_failed_too() -> None:
    assert result(engine("failed", exit_code=2)).exit_code() == 2
    assert result(engine("failed", exit_code=2), engine("failed", exit_code=4)).exit_code() == 4


def test_several_builds_exit_as_the_most_severe() -> None:
    assert worst_exit_code([result(engine("pass")), result(engine("fail")), result(engine("unmeasured"))]) == 1
    assert worst_exit_code([]) == 0


def test_rows_show_why_and_what_was_refused() -> None:
    found = rows(result(engine("pass"), engine("fail"), engine("failed")))
    assert [r.verdict for r in found] == ["pass", "fail", "failed", "refused"]
    assert [r.cells[-1] for r in found] == ["", "0.5 is too little.", "it <broke> | badly", "no bf16 here"]


def test_the_pages_hold_every_engine_and_escape_what_they_show() -> None:
    found = result(engine("pass", "a"), engine("failed", "b"))
    html, text = render_html(found), render_markdown(found)
    for page in (html, text):
        assert "r/a/cpu" in page
        assert "r/b/cpu" in page
        assert "no bf16 here" in page
    assert "it &lt;broke&gt;" in html
    assert "it &lt;broke> \\| badly" in text
    assert "http:" not in html


def test_as_json_every_key_is_there_even_for_an_engine_that_failed() -> None:
    value = result(engine("failed")).to_json()
    assert value["steps"] == {"run": 1, "reused": 2, "failed": 3}
    (only,) = value["engines"]
    assert only["error"] == "it <broke> | badly"
    for key in ("path", "digest", "bytes", "verdict", "checks", "accuracy", "latency_ms_p50"):
        assert key in only
