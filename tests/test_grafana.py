"""The Grafana dashboard: whole panels, one data source that the viewer chooses, and metrics that a night really has."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prometheus_client import generate_latest

from engineworks.report.night.publish import night_registry
from engineworks.report.night.summary import summarize
from engineworks.serving.metrics import FAILURES, GPU_BUSY, GPU_BYTES, REQUESTS, SUMMARY_US

FILE = Path(__file__).parents[1] / "docs" / "grafana" / "engineworks-nightly.json"
WIDTH = 24


def dashboard() -> dict[str, Any]:
    value: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
    return value


def test_every_panel_has_a_place_targets_and_the_chosen_data_source() -> None:
    panels = dashboard()["panels"]
    assert len({p["id"] for p in panels}) == len(panels)
    source = {"type": "prometheus", "uid": "${datasource}"}
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        grid = panel["gridPos"]
        cells = {
            (x, y) for x in range(grid["x"], grid["x"] + grid["w"]) for y in range(grid["y"], grid["y"] + grid["h"])
        }
        assert not cells & taken, panel["title"]
        assert grid["x"] + grid["w"] <= WIDTH
        taken |= cells
        assert panel["title"]
        assert panel["type"] in ("stat", "timeseries", "table", "bargauge")
        assert panel["datasource"] == source
        assert panel["targets"]
        assert all(t["expr"] and t["refId"] and t["datasource"] == source for t in panel["targets"])


def test_variables_are_declared_before_they_are_used() -> None:
    value = dashboard()
    declared = {v["name"]: v for v in value["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(value["panels"])))
    assert used == set(declared) == {"datasource", "recipe"}
    assert declared["datasource"]["type"] == "datasource"
    assert declared["datasource"]["query"] == "prometheus"
    assert value["uid"]
    assert "id" not in value  # Grafana gives its own, another's cannot be imported


def test_it_asks_for_metrics_and_labels_that_a_night_has() -> None:
    engine = {"id": "r/fp32/cpu", "verdict": "pass", "latency_ms_p50": 1.0, "throughput_per_s": 1.0, "bytes": 1}
    watched = {"gpu_busy": 0.5, "gpu_mib": 1.0, "memory_mib": 1.0}
    load = {"completed_per_s": 1.0, "latency_ms_p99": 1.0, "watched": watched}
    engine |= {"accuracy": {"metric": {"engine": 1.0}}, "served": {"ready_s": 1.0, "load": load}}
    ran = [{"id": "r/export", "seconds": 1.0, "reason": ""}]
    night = summarize([{"recipe": "r", "engines": [engine], "ran": ran}], None, at=datetime.now(UTC))
    text = generate_latest(night_registry(night)).decode()
    labels: dict[str, set[str]] = {}
    for name, inner in re.findall(r"^(\w+)(?:\{(.*?)\})? ", text, re.MULTILINE):
        labels.setdefault(name, set()).update(re.findall(r"(\w+)=", inner))
    value = dashboard()
    asked = [t["expr"] for p in value["panels"] for t in p["targets"]] + [value["templating"]["list"][1]["definition"]]
    for expr in asked:
        for name, inner in re.findall(r"(engineworks_\w+)(?:\{(.*?)\})?", expr):
            assert name in labels, expr
            assert set(re.findall(r"(\w+)\s*[=!]", inner)) <= labels[name], expr
    shown = {n for e in asked for n in re.findall(r"engineworks_\w+", e)}
    assert shown == labels.keys()
    of_triton = {n for e in asked for n in re.findall(r"nv_\w+", e)}
    assert of_triton == {REQUESTS, FAILURES, SUMMARY_US, GPU_BUSY, GPU_BYTES}
