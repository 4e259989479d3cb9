"""What was recorded is found again: by `why`, `list` and `report`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from engineworks.cli import run_command
from engineworks.report.words import age
from engineworks.settings import read_settings
from engineworks.tracking.records import EngineRecord
from engineworks.tracking.runs import open_tracking
from tests.typed_reports import accuracy

ACCURACY = accuracy().to_json()


def record(method: str, verdict: str) -> str:
    """A build of one engine; returns its run id."""
    settings = read_settings()
    tracking = open_tracking(settings.artifacts)
    document = {"step": "calibrate", "version": 1, "params": {"method": method}, "inputs": {}, "digests": {}}
    steps = {k: {"key": f"{k}-{method}", **document} for k in ("export", "fold", "calibrate", "build")}
    check = {"name": "cosine[y]", "verdict": verdict, "message": "y: cosine is what it is.", "waived": ""}
    texts = {"fingerprints/steps.json": json.dumps(steps), "verdict.json": json.dumps([check])}
    resolved = {"calibration": {"method": method}, "accuracy": {"limits": {}}}
    plan = {"engines": [{"id": "tiny/int8/cpu"}], "refused": [], "resolved": resolved, "targets": {}}
    tags = {"engineworks.file": "recipes/tiny.yaml"}
    with tracking.start_build("tiny", f"key-{method}", tags, {}) as run:
        run.record_engine(
            EngineRecord(
                "tiny/int8/cpu", texts=texts, metrics={"latency_ms_p50/one": 1.5, "engine_bytes": 2**20},
                tags={"engineworks.verdict": verdict},
            )
        )  # fmt: skip
        metrics = {"steps_run": 3.0, "steps_reused": 1.0, "steps_failed": 0.0, "build_s": 2.0}
        run.finish(metrics=metrics, tags={"engineworks.verdict": verdict}, texts={"plan.json": json.dumps(plan)})
        return run.run_id


def out_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    capsys.readouterr()
    code = run_command(list(arguments))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_the_record_answers(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = Path("recipes/tiny.yaml")
    recipe.write_text(recipe.read_text(encoding="utf-8") + "calibration: {method: minmax}\n", encoding="utf-8")
    first, second = record("entropy", "pass"), record("minmax", "fail")
    _why_names_the_line_and_what_came_of_it(capsys, first, second)
    _list_shows_the_newest(capsys)
    _report_writes_the_page_again(capsys, first)


def _why_names_the_line_and_what_came_of_it(capsys: pytest.CaptureFixture[str], first: str, second: str) -> None:
    for arguments in ((first, second), ("tiny/int8/cpu",), (first, "tiny")):
        code, out, _ = out_of(capsys, "why", *arguments)
        assert code == 0
        assert "tiny/int8/cpu: pass → fail" in out
        line = len(Path("recipes/tiny.yaml").read_text(encoding="utf-8").splitlines())
        assert f"calibration.method: entropy → minmax  (recipes/tiny.yaml:{line}:15)" in out
        assert "check cosine[y]: pass → fail" in out
    found: Any = json.loads(out_of(capsys, "why", first, second, "--json")[1])
    assert found["engines"][0]["differences"][0]["kind"] == "recipe"
    code, out, err = out_of(capsys, "why", first, "nothing")
    assert (code, out) == (2, "")
    assert "no run, engine or recipe of this name" in err


def _list_shows_the_newest(capsys: pytest.CaptureFixture[str]) -> None:
    listed = json.loads(out_of(capsys, "list", "--json")[1])
    assert [(e["engine"], e["verdict"], e["age"]) for e in listed["engines"]] == [("tiny/int8/cpu", "fail", "just now")]
    assert [(r["recipe"], r["last build"]) for r in listed["recipes"]] == [("tiny", "fail")]
    assert [t["target"] for t in listed["targets"]] == ["cpu", "rtx40"]
    assert listed["champions"] == []


def _report_writes_the_page_again(capsys: pytest.CaptureFixture[str], run: str) -> None:
    code, out, _ = out_of(capsys, "report", run)
    page = Path(out.strip())
    assert (code, page.parent.name) == (0, run)
    assert "tiny/int8/cpu" in page.read_text(encoding="utf-8")
    assert "y: cosine is what it is." in out_of(capsys, "report", "tiny", "--markdown")[1]


@pytest.mark.parametrize("arguments", [("why", "x/y/z"), ("report", "digits")])
def test_nothing_recorded_is_one_sentence(
    repository: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]
) -> None:
    code, _, err = out_of(capsys, *arguments)
    assert code == 2
    assert "nothing was recorded" in err


def test_a_list_of_what_there_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = out_of(capsys, "list", "engine")
    assert code == 2
    assert "'engines'" in err


@pytest.mark.parametrize(
    ("passed", "words"),
    [
        (5, "just now"),
        (60, "1 minute ago"),
        (7200, "2 hours ago"),
        (86400 * 3, "3 days ago"),
        (86400 * 800, "2 years ago"),
    ],
)
def test_ages(passed: float, words: str) -> None:
    assert age(1000.0, 1000.0 + passed) == words
