"""Whole reports for tests, of which a test names only what it is about."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from engineworks.engines.sidecar import Sidecar
from engineworks.host.file_digests import digest_file
from engineworks.measure.accuracy import OutputAccuracy
from engineworks.measure.accuracy_report import Accuracy, MetricValues
from engineworks.measure.champion_report import ChampionComparison
from engineworks.measure.latency_report import Latency, ShapeMeasurement
from engineworks.measure.serving_report import ServingReport
from engineworks.model.calibrate.report import CalibrationReport
from engineworks.model.fold.report import FoldReport


def output(cosine: float | None = 0.99999, **changes: Any) -> OutputAccuracy:
    known: dict[str, Any] = {
        "max_abs": 0.1, "mean_abs": 0.01, "cosine": cosine, "sqnr_db": 30.0, "nonfinite": 0, "elements": 100,
        "worst_row": 7, "worst_row_cosine": 0.9,
    }  # fmt: skip
    return OutputAccuracy.from_json(known | changes)


def metric(engine: float | None = 0.9, **changes: Any) -> MetricValues:
    known: dict[str, Any] = {
        "name": "top1", "kind": "labels", "samples": 597, "lower_is_better": False, "engine": engine, "reference": 0.99,
        "ratio": None if engine is None else engine / 0.99,
    }  # fmt: skip
    return MetricValues.from_json(known | changes)


def accuracy(values: MetricValues | None = None, **outputs: OutputAccuracy) -> Accuracy:
    return Accuracy(outputs or {"logits": output()}, values, 597, (8,))


def shape_json(p50: float = 1.0, **changes: Any) -> dict[str, Any]:
    nothing = ("device_ms", "copies_ms", "copies_device_ms")
    known: dict[str, Any] = {
        "dims": {"batch": 1}, "profile": None, "tail": False, "latency_ms_p50": p50, "latency_ms_p90": 1.5 * p50,
        "latency_ms_p99": 2 * p50, "latency_ms_mean": p50, "median_interval": None, "throughput_per_s": 1000 / p50,
        "runs": 1000, "warmup_runs": 3, "warmup_s": 0.1, "settled": True, "notes": [], "first_run_ms": 20.0,
        "streams": [], "seconds": 1.0, "cost_ratio": None, "memory_mib": 10.0, "complaints": [],
        **{f"{name}_p{q}": None for name in nothing for q in (50, 90, 99)},
    }  # fmt: skip
    return known | changes


def shape(p50: float = 1.0, **changes: Any) -> ShapeMeasurement:
    return ShapeMeasurement.from_json(shape_json(p50, **changes))


def latency_json(shapes: Mapping[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    known: dict[str, Any] = {
        "load_ms": 5.0, "engine_mib": 7.0, "memory_total_mib": None, "sweep": [], "serving": {}, "disturbed_before": 0,
        "notes": [], "facts": {}, "load_complaints": [], "device": {"readings": [], "complaints": []}, "loads": {},
    }  # fmt: skip
    return known | {"shapes": {"one": shape_json()} if shapes is None else shapes} | changes


def latency(shapes: Mapping[str, Any] | None = None, **changes: Any) -> Latency:
    """shapes: by name, as JSON."""
    return Latency.from_json(latency_json(shapes, **changes))


def comparison_json(method: str = "measured", **changes: Any) -> dict[str, Any]:
    """changes: `shapes`, by name, need no more than what a test is about."""
    names = ("engine", "model", "version", "digest", "build_key", "run")
    known = {"champion": dict.fromkeys(names, ""), "digest": "new", "limit": 0.05, "confidence": 0.99, "earlier": []}
    shapes = {name: {"ratio": 1.0, "interval": None, "rounds": 0} | s for name, s in changes.pop("shapes", {}).items()}
    return known | {"method": method, "shapes": shapes} | changes


def champion_comparison(method: str = "measured", **changes: Any) -> ChampionComparison:
    return ChampionComparison.from_json(comparison_json(method, **changes))


def sidecar(**changes: Any) -> Sidecar:
    """changes: values of its fields, not their JSON; none is checked."""
    spec = {"name": "y", "dtype": "float32", "shape": ["batch", 3]}
    known = {
        "engine": "engine", "sha256": "0" * 64, "bytes": 9, "precision": "fp32", "target": {"backend": "onnxruntime"},
        "inputs": [spec | {"name": "x"}], "outputs": [spec], "profiles": [], "model_sha256": "1" * 64,
        "build_seconds": 0.5, "versions": {"onnxruntime": "1.27"}, "details": {"notes": []},
    }  # fmt: skip
    return replace(Sidecar.from_json(known), **changes)


def write_sidecar(folder: Path, **changes: Any) -> Sidecar:
    """Describe the file `engine` of the folder, with its digest."""
    written = sidecar(**{"sha256": digest_file(folder / changes.get("engine", "engine")), **changes})
    (folder / written.FILE).write_text(json.dumps(written.to_json()), encoding="utf-8")
    return written


LOADGEN = {"result": "VALID", "reasons": [], "p99_estimate_ms": None, "early_stopping": ""}
ANSWERS = {"requests": 27, "equal": 26, "worst": {"y": 0.0}, "errors": []}


def load_json(**changes: Any) -> dict[str, Any]:
    known = {
        "scenario": "server", "qps": 100.0, "limit_p99_ms": 15.0, "seconds": 60.0, "queries": 6000, "errors": 0,
        "first_error": "", "completed_per_s": 99.0, "latency_ms_p50": 2.0, "latency_ms_p90": 3.0, "latency_ms_p99": 9.0,
        "loadgen": LOADGEN, "batches": {}, "others": 0.05,
    }  # fmt: skip
    return known | changes


def serving(**changes: Any) -> ServingReport:
    """changes: as JSON."""
    known = {"server": {}, "model": "m", "answers": {"grpc": ANSWERS}, "spread": 0.0, "refusals": []}
    return ServingReport.from_json(known | changes)


def calibration() -> CalibrationReport:
    spread = {"mean": 0.1, "largest": {"relu": 0.5}}
    inputs = {"dtype": "float32", "samples": 24, "minimum": 0.0, "maximum": 1.0, "mean": 0.3, "std": 0.4,
              "nonfinite": 0, "drawn": [0.0, 1.0]}  # fmt: skip
    known = {"method": "entropy", "samples": 24, "provider": "CPUExecutionProvider", "tensors": 4, "constants": [],
             "empty": [], "saturated": spread, "unused": spread, "moved": spread,
             "data": {"sha256": "0" * 64, "samples": 24, "of": 30}, "warnings": ["few"], "inputs": {"x": inputs}}  # fmt: skip
    return CalibrationReport.from_json(known)


def fold_json(uses: Mapping[str, list[str]]) -> str:
    """The report of a folded model that uses these operators."""
    inventory: dict[str, Any] = {
        "nodes": len(uses), "operators": {}, "uses": uses, "parameters": 0, "weight_bytes": 0, "bytes_by_dtype": {},
        "opset": 18, "ir_version": 10, "inputs": [], "outputs": [],
    }  # fmt: skip
    report: dict[str, Any] = {
        "strategy": "polygraphy", "fallbacks": [], "nodes_before": 1, "nodes_after": 1, "opset_from": 18, "opset_to": 18,
        "max_abs": {}, "samples": 1, "notes": [], "inventory": inventory,
    }  # fmt: skip
    return json.dumps(FoldReport.from_json(report).to_json())
