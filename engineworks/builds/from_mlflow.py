"""Builds and engines read back from MLflow: for reports of old runs, and to explain why two differ."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engineworks.builds.calibration_health import CalibrationHealth
from engineworks.builds.comparison import Comparison, ComparisonRow
from engineworks.builds.recorded import engine_runs, read_json, read_report, read_text
from engineworks.builds.results import BuildResult, EngineResult, Failure, StepCounts
from engineworks.builds.step_facts import StepFact
from engineworks.engines.sidecar import Sidecar
from engineworks.measure.accuracy_report import Accuracy
from engineworks.measure.champion_report import ChampionComparison
from engineworks.measure.check import Check, message_of
from engineworks.measure.ladder.ladder import ladder_from_json
from engineworks.measure.latency_report import Latency
from engineworks.measure.layers import Layers
from engineworks.measure.sweep import recommend
from engineworks.plan.plan import Refused
from engineworks.tracking import records
from engineworks.tracking.runs import Tracking


def read_build(tracking: Tracking, build: records.RunSummary) -> BuildResult:
    """Read the recorded result of the build. Engines have no path: MLflow holds their files."""
    plan = read_json(tracking, build.run_id, records.PLAN_FILE) or {}
    order = {e["id"]: i for i, e in enumerate(plan.get("engines", ()))}
    runs = sorted(engine_runs(tracking, build), key=lambda run: order.get(run.engine or "", len(order)))
    metrics, warnings = build.metrics, build.tags.get("engineworks.warnings", "")
    return BuildResult(
        recipe=build.recipe,
        run=build.run_id,
        engines=tuple(_engine(tracking, run, plan.get("resolved", {})) for run in runs),
        refused=tuple(Refused(r["id"], message_of(r)) for r in plan.get("refused", ())),
        steps=StepCounts(*(int(metrics.get(f"steps_{k}", 0)) for k in ("run", "reused", "failed"))),
        seconds=metrics.get("build_s", 0.0),
        warnings=tuple(warnings.splitlines()),
        comparison=_comparison(read_json(tracking, build.run_id, records.COMPARISON_FILE)),
        calibration=tuple(
            CalibrationHealth.from_json(c) for c in read_json(tracking, build.run_id, records.CALIBRATION_FILE) or ()
        ),
        ladder=tuple(
            ladder_from_json(ladder) for ladder in read_json(tracking, build.run_id, records.LADDER_FILE) or ()
        ),
        not_selected=left_out(plan),
        dag=tuple(StepFact.from_json(step) for step in read_json(tracking, build.run_id, records.STEPS_FILE) or ()),
    )


def left_out(plan: Mapping[str, Any]) -> tuple[str, ...]:
    """Return ids of the engines that `--only` excluded from the build with this plan (JSON), also for old plans that do
    not list them."""
    if "not_selected" in plan:
        return tuple(plan["not_selected"])
    planned = {e["id"] for part in ("engines", "refused") for e in plan.get(part, ())}
    precisions = (plan.get("resolved") or {}).get("precisions") or ()
    ids = (f"{plan.get('recipe')}/{p}/{target}" for p in precisions for target in plan.get("targets") or ())
    return tuple(i for i in ids if i not in planned)


def _engine(tracking: Tracking, run: records.RunSummary, resolved: Mapping[str, Any]) -> EngineResult:
    def read(path: str) -> Any:
        return read_json(tracking, run.run_id, path)

    error, latency = read_text(tracking, run.run_id, records.ERROR_FILE), read_report(tracking, run.run_id, Latency)
    failure = Failure("", error, read_text(tracking, run.run_id, records.ERROR_LOG_FILE) or "") if error else None
    sweep = (resolved.get("performance") or {}).get("sweep") or {}
    verdict: Any = "failed" if failure else run.tags.get("engineworks.verdict", "unmeasured")
    return EngineResult(
        id=run.engine or run.name,
        verdict=verdict,
        checks=tuple(Check.from_json(check) for check in read(records.VERDICT_FILE) or ()),
        sidecar=read_report(tracking, run.run_id, Sidecar),
        accuracy=read_report(tracking, run.run_id, Accuracy),
        latency=latency,
        champion_comparison=read_report(tracking, run.run_id, ChampionComparison),
        log=read_text(tracking, run.run_id, records.BUILD_LOG_FILE) or "",
        failure=failure,
        recommendation=recommend(latency, sweep.get("latency_ms")) if sweep.get("batch") and latency else None,
        layers=Layers.from_json(layers) if (layers := read(Layers.FILE)) else None,
    )


def _comparison(value: Any) -> Comparison | None:
    if not value:
        return None
    rows = tuple(ComparisonRow(**row) for row in value["rows"])
    return Comparison(value["over"], tuple(dict.fromkeys(row.shape for row in rows)), rows)
