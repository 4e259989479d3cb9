"""Engines beside their peers: rows, what speed-ups are over, and that a wrong peer is none."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, cast

import pytest

from engineworks.builds.assembly import compare_with_peers
from engineworks.builds.comparison import Comparison, comparison_metrics
from engineworks.builds.results import BuildResult, EngineResult, EngineVerdict, Failure, StepCounts
from engineworks.measure.accuracy import OutputAccuracy
from engineworks.plan.peers import PlannedPeer
from engineworks.plan.plan import Plan, PlannedEngine
from engineworks.report.comparison import comparison_tables
from engineworks.report.text import render_markdown
from engineworks.report.write import render_html
from engineworks.store.store import Store
from tests.typed_reports import accuracy, output, shape_json
from tests.typed_reports import latency as latency_of


def latency(p50: float, *shapes: str, cosine: float | None = 1.0, nonfinite: int = 0, **more: Any) -> dict[str, Any]:
    return {
        "import_ms": 9.0, "load_ms": 7.0, "shapes": dict.fromkeys(shapes or ("one",), shape_json(p50)), "facts": {},
        "notes": [], "device": {"readings": [], "complaints": []},
        "outputs": {"logits": output(cosine, nonfinite=nonfinite).to_json()}, **more,
    }  # fmt: skip


PEERS = {
    "pytorch-fp32": PlannedPeer("r/peer/pytorch-fp32", "pytorch", "PyTorch eager", "fp32", "k1"),
    "pytorch-fp16": PlannedPeer("r/peer/pytorch-fp16", "pytorch", "PyTorch eager", "fp16", "k2"),
    "ort-cpu-fp32": PlannedPeer("r/peer/ort-cpu-fp32", "ort-cpu", "ONNX Runtime, CPU", "fp32", "k3"),
    "ort-cuda-fp32": PlannedPeer("r/peer/ort-cuda-fp32", "ort-cuda", "ONNX Runtime, CUDA", "fp32", why_not="no GPU"),
}


def compared(
    reports: Mapping[str, Any], *, shapes: tuple[str, ...] = ("one",), verdict: EngineVerdict = "pass",
    failures: Mapping[str, Failure] | None = None, names: tuple[str, ...] = tuple(PEERS),
) -> Comparison:  # fmt: skip
    """reports: by peer, and 'engine' for one engine."""
    peers = [PEERS[name] for name in names]
    artifacts = {
        p.step: SimpleNamespace(read_measurements=lambda kind, longest, r=reports[n]: kind.from_json(r))
        for n, p in PEERS.items()
        if n in reports
    }
    target = SimpleNamespace(name="cpu", target=SimpleNamespace(backend="onnxruntime"))
    engines = [PlannedEngine("r/fp16/cpu", "r", "fp16", cast(Any, target), {})]
    recipe = SimpleNamespace(performance=SimpleNamespace(at=dict.fromkeys(shapes)))
    plan = SimpleNamespace(
        peers=peers, engines=engines, loaded=SimpleNamespace(recipe=recipe), needed=lambda keys: [SimpleNamespace(key=key) for key in ("fold", *keys)],
    )  # fmt: skip
    report = reports.get("engine")
    own = latency_of(report["shapes"], load_ms=7.0) if report else None
    outputs = {k: OutputAccuracy.from_json(v) for k, v in report["outputs"].items()} if report else {}
    results = [EngineResult("r/fp16/cpu", verdict, (), latency=own, accuracy=accuracy(None, **outputs))]
    found = compare_with_peers(
        cast(Plan, plan), results, cast(Store, SimpleNamespace(get=artifacts.get)), failures or {}
    )  # fmt: skip
    assert found is not None
    return found


def speedups(found: Comparison) -> dict[str, float | None]:
    return {row.name: row.speedup for row in found.rows}


ALL = {"pytorch-fp32": latency(8.0), "pytorch-fp16": latency(4.0), "ort-cpu-fp32": latency(2.0), "engine": latency(1.0)}


def test_speed_ups_are_over_pytorch_fp32_where_it_ran() -> None:
    found = compared(ALL)
    assert found.over == "PyTorch eager fp32"
    assert speedups(found) == {
        "pytorch-fp32": 1.0, "pytorch-fp16": 2.0, "ort-cpu-fp32": 4.0, "fp16/cpu": 8.0, "ort-cuda-fp32": None,
    }  # fmt: skip


def test_otherwise_they_are_over_onnx_runtime_on_the_cpu_and_the_heading_says_so() -> None:
    found = compared({"ort-cpu-fp32": latency(2.0), "engine": latency(1.0)})
    assert found.over == "ONNX Runtime, CPU fp32"
    assert speedups(found)["fp16/cpu"] == 2.0
    (table,) = comparison_tables(found)
    assert "× over ONNX Runtime, CPU fp32" in table.headings


def test_where_neither_ran_there_are_none() -> None:
    found = compared({"engine": latency(1.0)})
    assert found.over == ""
    assert set(speedups(found).values()) == {None}


@pytest.mark.parametrize(
    "wrong",
    [latency(0.1, cosine=0.9), latency(0.1, cosine=None), latency(0.1, nonfinite=1)],
    ids=["far", "no number", "NaN"],
)
def test_a_fast_wrong_peer_gets_no_speed_up_and_is_no_base(wrong: dict[str, Any]) -> None:
    found = compared({**ALL, "pytorch-fp32": wrong})
    row = next(row for row in found.rows if row.name == "pytorch-fp32")
    assert row.speedup is None
    assert "differ from the fp32 reference" in row.note
    assert found.over == "ONNX Runtime, CPU fp32"
    (table,) = comparison_tables(found)
    assert table.marked is not None
    assert table.rows[table.marked][0].text == "ONNX Runtime engine, cpu"


def test_an_engine_that_failed_its_gate_gets_none_either() -> None:
    row = next(row for row in compared(ALL, verdict="fail").rows if row.engine)
    assert row.speedup is None
    assert row.note == "verdict: fail"


def test_every_named_shape_has_its_own_base() -> None:
    slow = latency(10.0)["shapes"]["one"]
    reports = {"ort-cpu-fp32": latency(2.0, "one", "two"), "engine": latency(1.0, "one", "two")}
    reports["ort-cpu-fp32"]["shapes"]["two"] = slow
    found = compared(reports, shapes=("one", "two"), names=("ort-cpu-fp32",))
    assert [(r.shape, r.name, r.speedup) for r in found.rows] == [
        ("one", "ort-cpu-fp32", 1.0), ("one", "fp16/cpu", 2.0), ("two", "ort-cpu-fp32", 1.0), ("two", "fp16/cpu", 10.0),
    ]  # fmt: skip


def test_what_did_not_run_is_a_row_with_its_sentence() -> None:
    failures = {"k1": Failure("r/peer/pytorch-fp32", "PyTorch failed"), "fold": Failure("r/fold", "no such operator")}
    notes = {row.name: row.note for row in compared({}, failures=failures).rows}
    assert notes["ort-cuda-fp32"] == "no GPU"
    assert notes["pytorch-fp32"] == "no such operator"  # the first of what it stands on
    only = {row.name: row.note for row in compared({}, failures={"k1": failures["k1"]}).rows}
    assert only["pytorch-fp32"] == "PyTorch failed"
    assert only["pytorch-fp16"] == "it was not run"


def test_the_device_that_pytorch_ran_on_is_in_its_name() -> None:
    rows = compared({**ALL, "pytorch-fp32": latency(8.0, facts={"device": "cuda"})}).rows
    assert rows[0].framework == "PyTorch eager, CUDA"


def result(found: Comparison | None) -> BuildResult:
    return BuildResult("r", "run1", (), (), StepCounts(1, 2, 0), comparison=found)


def test_the_table_is_on_every_page_and_in_json() -> None:
    found = compared(ALL)
    for page in (render_html(result(found)), render_markdown(result(found))):
        assert "compared at one (batch 1)" in page
        assert "× over PyTorch eager fp32" in page
        assert "no GPU" in page
    value = result(found).to_json()["comparison"]
    assert value["over"] == "PyTorch eager fp32"
    assert next(r for r in value["rows"] if r["name"] == "fp16/cpu")["speedup"] == 8.0
    assert result(None).to_json()["comparison"] is None
    assert "compared at" not in render_html(result(None)) + render_markdown(result(None))


def test_metrics_are_named_by_peer_and_shape() -> None:
    metrics = comparison_metrics(compared(ALL))
    assert metrics["peer_latency_ms_p50/pytorch-fp32/one"] == 8.0
    assert metrics["peer_speedup/pytorch-fp16/one"] == 2.0
    assert metrics["engine_speedup/fp16/cpu/one"] == 8.0
    assert not any("ort-cuda" in name for name in metrics)
    assert comparison_metrics(None) == {}


def test_several_outputs_have_a_cosine_each() -> None:
    outputs = {"a": output(1.0).to_json(), "b": output(0.995).to_json()}
    (table,) = comparison_tables(compared({"pytorch-fp32": latency(8.0, outputs=outputs)}, names=("pytorch-fp32",)))
    assert table.rows[0][7].text == "a 1.00000, b 0.99500"
