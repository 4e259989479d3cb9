"""The section on served packages."""

from __future__ import annotations

from pathlib import Path

from engineworks.builds.results import BuildResult, EngineResult, StepCounts
from engineworks.measure.serving_report import ServingReport
from engineworks.report.blocks import Plot, Table
from engineworks.report.serving import WATCHED, serving_section
from tests.typed_reports import ANSWERS, load_json, serving

BARE = {"backend": "python", "ready_s": 1.0}


def result(report: ServingReport | None) -> BuildResult:
    engine = EngineResult("r/fp32/cpu", "pass", (), path=Path("x"), serving=report)
    return BuildResult("r", "run", (engine,), (), StepCounts())


def test_there_is_none_where_nothing_was_served() -> None:
    assert serving_section(result(None), plots=True) is None


def test_it_shows_answers_rates_and_batches() -> None:
    load = load_json(completed_per_s=99.6, latency_ms_p99=9.25, batches={"8": 40})
    report = serving(backend="python", ready_s=1.234, answers={"http": ANSWERS, "grpc": ANSWERS}, load=load)
    section = serving_section(result(report), plots=False)
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
    section = serving_section(result(serving(**BARE)), plots=True)
    assert section is not None
    (only,) = (block for block in section.blocks if isinstance(block, Table))
    assert only.headings == ("engine", "Triton's backend", "ready s", "answers", "equal")


def test_it_shows_tritons_metrics_and_what_a_sweep_found() -> None:
    watched = dict.fromkeys(WATCHED, None) | {"readings": 2, "requests": 1200.0, "queue_ms": 0.5}
    points = [
        {"preferred": None, "delay_us": 0, "instances": 1, "rate": 20.0, "tries": []},
        {"preferred": [8, 16], "delay_us": 500, "instances": 2, "rate": 90.0, "tries": []},
    ]
    batching = {"points": points, "recommended": points[1], "gain": 4.5}
    section = serving_section(result(serving(**BARE, load=load_json(watched=watched), batching=batching)), plots=True)
    assert section is not None
    plot = next(block for block in section.blocks if isinstance(block, Plot))
    assert "4.50 times the rate without batching" in plot.caption
    assert "500 µs, [8, 16], 2 instances" in plot.svg
    _, metrics, sweep = (block for block in section.blocks if isinstance(block, Table))
    assert (metrics.headings, [cell.text for cell in metrics.rows[0]]) == (
        ("engine", "requests", "queue ms"), ["r/fp32/cpu", "1,200", "0.50"]
    )  # fmt: skip
    assert sweep.marked == 1
    assert [cell.text for cell in sweep.rows[0]] == ["no batching, 1 instance", "20"]
