"""The section on served packages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from engineworks.builds.results import BuildResult, EngineResult, StepCounts
from engineworks.report.blocks import Table
from engineworks.report.serving import serving_section

ANSWERS = {"requests": 27, "equal": 26, "worst": {}, "errors": []}


def result(serving: Any) -> BuildResult:
    engine = EngineResult("r/fp32/cpu", "pass", (), path=Path("x"), serving=serving)
    return BuildResult("r", "run", (engine,), (), StepCounts())


def test_there_is_none_where_nothing_was_served() -> None:
    assert serving_section(result(None)) is None


def test_it_shows_answers_rates_and_batches() -> None:
    load = {"completed_per_s": 99.6, "latency_ms_p50": 2.0, "latency_ms_p99": 9.25, "errors": 0, "batches": {"8": 40}}
    report = {"backend": "python", "ready_s": 1.234, "answers": {"http": ANSWERS, "grpc": ANSWERS}, "load": load}
    section = serving_section(result(report))
    assert section is not None
    first, second = (block for block in section.blocks if isinstance(block, Table))
    assert [cell.text for cell in first.rows[0]] == [
        "r/fp32/cpu",
        "python",
        "1.23",
        "54",
        "52",
        "100",
        "2.00",
        "9.25",
        "0",
    ]
    assert [cell.text for cell in second.rows[0]] == ["r/fp32/cpu", "8", "40"]


def test_a_package_without_a_load_has_no_rates() -> None:
    section = serving_section(result({"backend": "python", "ready_s": 1.0, "answers": {"grpc": ANSWERS}, "load": None}))
    assert section is not None
    (only,) = (block for block in section.blocks if isinstance(block, Table))
    assert only.headings == ("engine", "Triton's backend", "ready s", "answers", "equal")
