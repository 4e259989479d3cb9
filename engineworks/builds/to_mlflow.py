"""Plans and results → what MLflow records: params, metrics, tags and texts. Pure."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Mapping
from typing import Any

from engineworks.builds.comparison import comparison_metrics
from engineworks.builds.results import BuildResult, EngineResult
from engineworks.engines.engine_files import NOT_SHIPPED, PASSPORT_FILE, SIDECAR_FILE
from engineworks.host.git import commit_of
from engineworks.plan.champion_comparison import conditions_of
from engineworks.plan.plan import Plan
from engineworks.tracking import records


def build_tags(plan: Plan, flow_run: str) -> dict[str, str]:
    """Return the origin of the build: recipe file, git commit, host, Prefect flow run."""
    recipe = plan.loaded.recipe
    tags = {
        "engineworks.file": plan.loaded.shown,
        "engineworks.owner_of_recipe": recipe.owner,
        "engineworks.host": platform.node(),
        "prefect.flow_run": flow_run,
        "mlflow.note.content": recipe.description,
        records.NOT_SELECTED: str(len(plan.not_selected) or ""),
        records.DATASETS: _datasets(plan),
    }
    commit = commit_of(plan.loaded.root)
    return {k: v for k, v in (tags | {"mlflow.source.git.commit": commit}).items() if v}


def _datasets(plan: Plan, engine: EngineResult | None = None) -> str:
    """Return the data that engines, or one engine, are compared on and calibrated with, as JSON of MLflow's datasets:
    name, digest, uri and role; '' without any. A digest is the file's, or the key of the step that prepares it."""
    files = plan.loaded.files
    steps = plan.needed(engine.keys.values() if engine else plan.steps)
    found = []
    parts = (("reference", "evaluation", files.evaluation), ("calibrate", "calibration", files.calibration))
    for kind, role, data in parts:
        document = next((step.document for step in steps if step.kind == kind), None)
        digest = document and {**document["inputs"], **document["digests"]}.get(role)
        if data and digest:
            found.append({"name": data.title, "digest": digest[:12], "uri": str(data.path), "role": role})
    return json.dumps(found) if found else ""


def plan_params(plan: Plan) -> dict[str, str]:
    """Return the resolved recipe, one param per leaf, so that MLflow's comparison shows which line differs."""
    resolved = plan.loaded.recipe.model_dump(mode="json", exclude_none=True, exclude={"description", "owner", "tags"})
    return flatten(resolved)


def flatten(value: Any, path: str = "") -> dict[str, str]:
    """Flatten nested mappings to dotted names, and lists to JSON."""
    if isinstance(value, Mapping):
        flat: dict[str, str] = {}
        for key, inner in value.items():
            flat |= flatten(inner, f"{path}.{key}" if path else str(key))
        return flat
    return {path: value if isinstance(value, str) else json.dumps(value)}


def engine_record(plan: Plan, engine: EngineResult, ladder: str = "") -> records.EngineRecord:
    """Return one engine's child run: metrics, limits, verdict reasons, fingerprints, logs and the engine. ladder: its
    status in `precisions: auto`, '' without one."""
    failure = engine.failure
    texts = {records.VERDICT_FILE: json.dumps([c.to_json() for c in engine.checks], indent=1)}
    texts |= {records.document_file(kind): _document(plan, key) for kind, key in engine.keys.items()}
    texts[records.STEP_DOCUMENTS_FILE] = _documents(plan, engine)
    if engine.sidecar:
        texts[SIDECAR_FILE] = json.dumps(engine.sidecar.to_json(), indent=1)
    if engine.accuracy:
        texts[engine.accuracy.FILE] = json.dumps(engine.accuracy.to_json(), indent=1)
    for report in filter(None, (engine.latency, engine.layers, engine.champion_comparison)):
        texts[report.FILE] = json.dumps(report.to_json())
    if engine.log:
        texts[records.BUILD_LOG_FILE] = engine.log
    if engine.passport:
        texts[PASSPORT_FILE] = engine.passport.read_text(encoding="utf-8")
    if failure:
        texts |= {records.ERROR_FILE: failure.message, records.ERROR_LOG_FILE: failure.log}
    folder = engine.path.parent if engine.path else None
    files = [f for f in folder.iterdir() if f.name not in NOT_SHIPPED] if folder else []
    return records.EngineRecord(
        id=engine.id,
        status="FAILED" if failure or engine.verdict == "fail" else "FINISHED",
        params=_engine_params(plan, engine),
        metrics=_metrics(engine),
        tags=_engine_tags(engine)
        | _model_tag(plan, engine)
        | _condition_tags(plan, engine)
        | {
            name: text for name, text in ((records.LADDER, ladder), (records.DATASETS, _datasets(plan, engine))) if text
        },
        texts=texts,
        files={f"engine/{f.name}": f for f in files},
        engine_digest=engine.digest,
        store_keys=(*plan.closure(engine.keys.values()), *([engine.passport.parent.name] if engine.passport else [])),
        series=_series(engine),
    )


def result_metrics(result: BuildResult) -> dict[str, float]:
    verdicts = [e.verdict for e in result.engines]
    counts = {f"engines_{verdict}": float(verdicts.count(verdict)) for verdict in dict.fromkeys(verdicts)}
    steps = {f"steps_{k}": float(v) for k, v in result.steps.to_json().items()}
    notes = {"warnings": float(len(result.warnings)), "engines_refused": float(len(result.refused))}
    return counts | steps | notes | {"build_s": result.seconds} | comparison_metrics(result.comparison)


def result_tags(result: BuildResult) -> dict[str, str]:
    """Return the verdict of all engines together, and the warnings."""
    tags: dict[str, str] = {records.VERDICT: result.verdict}
    if result.ladder:
        tags[records.LADDER] = "\n".join(ladder.message for ladder in result.ladder)
    return tags | ({"engineworks.warnings": "\n".join(result.warnings)} if result.warnings else {})


def result_texts(result: BuildResult) -> dict[str, str]:
    """Return files of the build's run that come from its result."""
    documents = {
        records.CALIBRATION_FILE: [health.to_json() for health in result.calibration],
        records.LADDER_FILE: [ladder.to_json() for ladder in result.ladder],
        records.STEPS_FILE: [step.to_json() for step in result.dag],
        records.COMPARISON_FILE: result.comparison and result.comparison.to_json(),
    }
    return {file: json.dumps(document, indent=1) for file, document in documents.items() if document}


def _document(plan: Plan, key: str) -> str:
    return json.dumps({"key": key, **plan.steps[key].document}, indent=1)


def _documents(plan: Plan, engine: EngineResult) -> str:
    """Return every step that the engine needs, by kind: `why` compares their inputs between two runs."""
    steps = plan.needed(engine.keys.values())
    return json.dumps({s.kind: {"key": s.key, "id": s.id, **s.document} for s in steps}, indent=1, sort_keys=True)


def _engine_params(plan: Plan, engine: EngineResult) -> dict[str, str]:
    _, precision, target = engine.id.split("/")
    limits = next((v for k, v in plan.loaded.recipe.accuracy.limits.items() if k == precision), None)
    limited = flatten(limits.model_dump(exclude_none=True), "limits") if limits else {}
    limited |= _performance_limits(plan)
    versions = flatten(engine.sidecar.versions if engine.sidecar else {}, "versions")
    return {"precision": precision, "target": target, **limited, **versions}


def _model_tag(plan: Plan, engine: EngineResult) -> dict[str, str]:
    """Name the model it was made from: the key of its export, which holds the weights."""
    export = next((step for step in plan.needed(engine.keys.values()) if step.kind == "export"), None)
    return {records.MODEL: export.key} if export else {}


def _performance_limits(plan: Plan) -> dict[str, str]:
    """Return budgets by shape, and by how much the engine may be worse than its champion."""
    performance = plan.loaded.recipe.performance
    asked = {"budget": {shape: budget.model_dump(exclude_none=True) for shape, budget in performance.budget.items()}}
    if performance.regression is not None:
        asked["regression"] = performance.regression.model_dump(exclude_none=True)
    return {name: value for kind, limits in asked.items() if limits for name, value in flatten(limits, kind).items()}


def _engine_tags(engine: EngineResult) -> dict[str, str]:
    tags: dict[str, str] = {records.VERDICT: engine.verdict}
    reasons = [c.text for c in engine.checks if c.verdict != "pass"]
    if engine.waived:
        tags["engineworks.waived"] = "; ".join(engine.waived)
    if engine.failure:
        reasons = [engine.failure.message]
    return tags | ({records.WHY: " ".join(reasons)} if reasons else {})


def _condition_tags(plan: Plan, engine: EngineResult) -> dict[str, str]:
    """Return what its latency depends on, so that later runs find comparable measurements, and its champion."""
    tags: dict[str, str] = {}
    if engine.latency and "measure" in engine.keys:
        document = plan.steps[engine.keys["measure"]].document
        tags = {records.CONDITIONS: conditions_of(document), records.HARDWARE: json.dumps(document["hardware"])}
    if engine.champion_comparison:
        champion = engine.champion_comparison.champion
        tags |= {"engineworks.champion": f"{champion.model}/{champion.version}"}
    return tags


def _metrics(engine: EngineResult) -> dict[str, float]:
    """Return numbers by name: cosine/logits, latency_ms_p50/interactive. None becomes NaN, recorded as not finite."""
    metrics: dict[str, float | None] = {}
    for name, output in engine.accuracy.outputs.items() if engine.accuracy else ():
        metrics |= {f"{k}/{name}": getattr(output, k) for k in ("cosine", "max_abs", "mean_abs", "nonfinite")}
        if output.sqnr_db is not None:
            metrics[f"sqnr_db/{name}"] = output.sqnr_db
    task = engine.accuracy.metric if engine.accuracy else None
    if task:
        metrics |= {"metric": task.engine, "metric_reference": task.reference, "metric_ratio": task.ratio}
    for part in task.slices if task else ():
        if not part.why:
            metrics |= {f"slice_metric/{part.name}": part.engine, f"slice_ratio/{part.name}": part.ratio}
    if engine.latency:
        metrics["load_ms"] = engine.latency.load_ms
        for shape, values in engine.latency.shapes.items():
            metrics |= {f"{k}/{shape}": getattr(values, k) for k in _LATENCY_METRICS}
            metrics |= {f"{k}/{shape}": v for k in _MEASURED_METRICS if (v := getattr(values, k)) is not None}
            metrics |= {f"samples_per_s/{shape}/streams_{s.streams}": s.samples_per_s for s in values.streams}
    if engine.recommendation and engine.recommendation.batch:
        metrics["recommended_batch"] = engine.recommendation.batch
    if engine.serving:
        load = engine.serving.load
        rates = {"served_ready_s": engine.serving.ready_s, "served_per_s": load.rate if load else None}
        rates |= {f"served_{k}": getattr(load, k, None) for k in ("latency_ms_p50", "latency_ms_p99", "errors")}
        metrics |= {name: float(value) for name, value in rates.items() if value is not None}
    for shape, compared in engine.champion_comparison.shapes.items() if engine.champion_comparison else ():
        low, high = compared.interval or (None, None)
        ratios = {"ratio": compared.ratio, "ratio_low": low, "ratio_high": high}
        metrics |= {f"champion_{k}/{shape}": v for k, v in ratios.items() if v is not None}
    if engine.sidecar:
        metrics |= {"engine_bytes": engine.sidecar.bytes, "build_s": engine.sidecar.build_seconds}
    metrics |= _headline(engine)
    return {k: float("nan") if v is None else float(v) for k, v in metrics.items()}


def _headline(engine: EngineResult) -> dict[str, float]:
    """Return the same few names for every engine of every recipe, so that they are columns in a table of runs.

    They are measured at the recipe's first named shape; the cosine is the smallest of the outputs. See
    `tracking.pages.HEADLINE`.
    """
    first = engine.latency.first if engine.latency else None
    cosine, size = engine.accuracy.worst_cosine if engine.accuracy else None, engine.bytes
    values: dict[str, Any] = {
        "p50_ms": first and first.latency_ms_p50, "p99_ms": first and first.latency_ms_p99,
        "samples_per_s": first and first.throughput_per_s, "memory_mib": first and first.memory_mib,
        "worst_cosine": math.nan if engine.accuracy and cosine is None else cosine,
        "engine_mib": size / 2**20 if size else None,
    }  # fmt: skip
    return {name: float(value) for name, value in values.items() if value is not None}


def _series(engine: EngineResult) -> dict[str, dict[int, float]]:
    """Return the batch sweep: each metric by batch, so that MLflow draws its curve."""
    points = engine.latency.points if engine.latency else ()
    return {f"sweep_{k}": {p.batch: getattr(p, k) for p in points} for k in _SWEEP_METRICS} if points else {}


_MEASURED_METRICS = (
    "device_ms_p50", "device_ms_p99", "copies_ms_p50", "copies_ms_p99", "copies_device_ms_p50", "first_run_ms",
    "cost_ratio",
)  # fmt: skip
"""Recorded only if measured: a CPU has no clock of its own, and nothing to copy."""

_SWEEP_METRICS = ("latency_ms_p50", "latency_ms_mean", "throughput_per_s", "memory_mib")

_LATENCY_METRICS = ("latency_ms_p50", "latency_ms_p90", "latency_ms_p99", "throughput_per_s", "memory_mib")
