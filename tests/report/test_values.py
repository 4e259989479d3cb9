"""Latency, streams and batch sweep of an engine as tables, on both pages, on the terminal, as JSON and for MLflow."""

from __future__ import annotations

from typing import Any

import pytest

from engineworks.builds.results import BuildResult, EngineResult, StepCounts
from engineworks.builds.to_mlflow import _metrics, _series
from engineworks.measure.latency_report import Latency
from engineworks.measure.sweep import Recommendation
from engineworks.report.text import render_markdown
from engineworks.report.values import (
    complaints,
    has_device_measurements,
    latency_table,
    remarks,
    streams_table,
    sweep_table,
)
from engineworks.report.write import render_html
from tests.typed_reports import latency_json, shape_json, sidecar

SHAPE = shape_json() | {
    "dims": {"batch": 1}, "latency_ms_p50": 0.2, "latency_ms_p90": 0.21, "latency_ms_p99": 0.3,
    "latency_ms_mean": 0.22, "throughput_per_s": 5000.0, "runs": 900, "memory_mib": 310.0, "first_run_ms": 41.0,
    "device_ms_p50": 0.15, "device_ms_p99": 0.25, "copies_ms_p50": 0.4, "copies_ms_p99": 0.5,
    "copies_device_ms_p50": 0.35, "cost_ratio": 1.2, "notes": ["p99 is uncertain"],
    "streams": [{"streams": 2, "runs_per_s": 9000.0, "samples_per_s": 9000.0, "seconds": 0.5}],
    "samples": [0.2], "device_samples": [0.15], "copies_samples": [0.4], "copies_device_samples": [0.35],
}  # fmt: skip
SWEEP = [
    {**SHAPE, "batch": 1, "shape": "one"},
    {**SHAPE, "batch": 8, "notes": ["loud"]},
    {"batch": 64, "dims": {}, "profile": None, "tail": False, "error": "no <room>"},
]
REPORT = latency_json() | {
    "load_ms": 300.0, "engine_mib": 12.0, "memory_total_mib": 80_000.0, "shapes": {"one": SHAPE}, "sweep": SWEEP,
    "serving": {"cuda_graphs": True, "kernels": "lazy"}, "notes": ["no graph was captured"], "facts": {},
    "load_complaints": [],
    "device": {"readings": [], "complaints": ["one: the GPU was throttled", "batch 8: the GPU was throttled"]},
}  # fmt: skip
CPU_SHAPE = (
    SHAPE | {k: None for k in SHAPE if k.startswith(("device_ms", "copies_ms", "copies_device_ms"))} | {"streams": []}
)


def engine(**changes: Any) -> EngineResult:
    chosen = Recommendation(8, "batch 8: 5,000 samples/s at 0.2 ms")
    return EngineResult(
        "r/fp16/h100",
        "pass",
        (),
        sidecar=sidecar(bytes=100, sha256="d"),
        latency=Latency.from_json(REPORT | changes),
        recommendation=chosen,
    )


def test_host_device_and_copies_stand_side_by_side() -> None:
    table = latency_table(engine())
    assert table is not None
    cells = {heading: cell.text for heading, cell in zip(table.headings, table.rows[0], strict=True)}
    assert cells["p50 ms"] == "0.2000"
    assert cells["device p50 ms"] == "0.1500"
    assert cells["with copies p50 ms"] == "0.4000"
    assert cells["first run ms"] == "41.00"


def test_what_a_cpu_has_not_takes_no_room() -> None:
    cpu = engine(shapes={"one": CPU_SHAPE})
    table = latency_table(cpu)
    assert table is not None
    assert not [h for h in table.headings if "device" in h or "copies" in h]
    assert not has_device_measurements(cpu)
    assert has_device_measurements(engine())
    assert streams_table(cpu) is None


def test_the_sweep_marks_its_choice_and_says_why() -> None:
    table = sweep_table(engine())
    assert table is not None
    assert [row[0].text for row in table.rows] == ["1", "8 *", "64"]
    assert table.rows[2][-1].text == "no <room>"
    assert table.below == "Recommended: batch 8: 5,000 samples/s at 0.2 ms."


def test_both_pages_hold_tables_notes_and_complaints() -> None:
    result = BuildResult("r", "run1", (engine(),), (), StepCounts())
    html, text = render_html(result), render_markdown(result)
    for page in (html, text):
        for wanted in ("with copies p50 ms", "8 *", "9,000", "throttled", "no graph was captured", "one: p99 is uncertain",
                       "batch 8: loud", "Recommended: batch 8"):  # fmt: skip
            assert wanted in page
    assert "no &lt;room&gt;" in html


def test_an_engine_that_was_not_measured_has_no_tables() -> None:
    bare = EngineResult("r/fp16/h100", "unmeasured", ())
    assert latency_table(bare) is sweep_table(bare) is streams_table(bare) is None
    assert list(remarks(bare)) == list(complaints(bare)) == []


def test_the_terminal_prints_the_tables_after_the_verdicts(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")  # narrow tables leave columns out
    from engineworks.report.results_text import print_results
    from engineworks.settings import read_settings

    print_results([BuildResult("r", "run1", (engine(),), (), StepCounts())], read_settings(), quiet=True)
    shown = capsys.readouterr().out
    wanted = [
        "r/fp16/h100",
        "device p50 ms",
        "streams",
        "8 *",
        "Recommended: batch 8",
        "note: r/fp16/h100: one: the GPU was throttled (1 more in the report)",
        "note: r/fp16/h100: no graph was captured",
    ]
    places = [shown.index(words) for words in wanted]
    assert places == sorted(places)


def test_as_json_there_are_all_figures_but_no_raw_samples() -> None:
    value = engine().to_json()
    assert value["sweep"]["batch"] == 8
    assert [p["batch"] for p in value["sweep"]["points"]] == [1, 8, 64]
    assert value["complaints"][0] == "one: the GPU was throttled"
    assert value["notes"] == ["no graph was captured"]
    assert value["serving"] == {"cuda_graphs": True, "kernels": "lazy"}
    for values in (value["latency"]["one"], value["sweep"]["points"][0]):
        assert values["device_ms_p50"] == 0.15
        assert not [k for k in values if k.endswith("samples")]


def test_mlflow_gets_what_was_measured_and_no_blanks() -> None:
    metrics = _metrics(engine())
    assert metrics["device_ms_p50/one"] == 0.15
    assert metrics["copies_ms_p50/one"] == 0.4
    assert metrics["first_run_ms/one"] == 41.0
    assert metrics["samples_per_s/one/streams_2"] == 9000.0
    assert metrics["recommended_batch"] == 8.0
    on_cpu = _metrics(engine(shapes={"one": CPU_SHAPE}))
    assert not [name for name in on_cpu if name.startswith(("device", "copies"))]


def test_mlflow_gets_the_sweep_by_batch() -> None:
    assert _series(engine())["sweep_throughput_per_s"] == {1: 5000.0, 8: 5000.0}
    assert _series(engine(sweep=[])) == {}
