"""Two names → pairs of recorded engines, read from MLflow (and from the store, where older runs recorded less)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from engineworks.builds.recorded import build_of, engine_runs, find_run, read_json, read_report, read_text, recorded
from engineworks.errors import InputError, Place, RecipeError
from engineworks.measure.accuracy_report import Accuracy
from engineworks.measure.latency_report import Latency
from engineworks.plan.kinds import STEP_KINDS
from engineworks.plan.steps import closure
from engineworks.report.why.why import Difference, Explanation, Side, explain
from engineworks.settings import Settings
from engineworks.store.shared import open_store
from engineworks.store.store import Store
from engineworks.tracking import records
from engineworks.tracking.runs import Tracking


def explain_runs(first: str, second: str | None, settings: Settings) -> list[Explanation]:
    """Why the engines of the two differ: run ids of builds or engines, engine ids, recipes' names. Builds are compared
    engine by engine. Without a second, the newest is compared with the one before.

    Raises `InputError` where one is not recorded, or the two have no engine in common.
    """
    tracking, store = recorded(settings), open_store(settings)
    after = find_run(tracking, second or first)
    before = find_run(tracking, first) if second else _previous(tracking, after)
    pairs = _pairs(tracking, before, after)
    explained = []
    for before_run, after_run in pairs:
        explanation = explain(_side(tracking, store, before_run), _side(tracking, store, after_run))
        file = build_of(tracking, after_run).tags.get("engineworks.file", "")
        explained.append(_with_places(explanation, Path(file)))
    return explained


def _previous(tracking: Tracking, run: records.RunSummary) -> records.RunSummary:
    """The finished run before this one, of the same recipe or engine."""
    kind: Any = run.tags[records.KIND]
    runs = tracking.find_runs(recipe=run.recipe, engine=run.engine, kind=kind, limit=100)
    older = [r for r in runs if r.run_id != run.run_id and r.started_at <= run.started_at]
    if not older:
        raise InputError(f"{run.engine or run.recipe} was recorded once only", hint="name two runs")
    return older[0]


def _pairs(
    tracking: Tracking, before: records.RunSummary, after: records.RunSummary
) -> list[tuple[records.RunSummary, records.RunSummary]]:
    kinds = {before.tags[records.KIND], after.tags[records.KIND]}
    if kinds == {"engine"}:
        return [(before, after)]
    sides = []
    for run, other in ((before, after), (after, before)):
        engines = {r.engine: r for r in (engine_runs(tracking, run) if run.tags[records.KIND] == "build" else [run])}
        sides.append({k: r for k, r in engines.items() if other.engine in (None, k)})
    both = [engine for engine in sides[0] if engine in sides[1]]
    if not both:
        raise InputError(
            f"runs {before.run_id} and {after.run_id} have no engine in common",
            hint="name the two engines' runs: `engineworks list engines`",
        )
    return [(sides[0][engine], sides[1][engine]) for engine in both]


def _side(tracking: Tracking, store: Store, run: records.RunSummary) -> Side:
    plan = read_json(tracking, run.parent_run_id, records.PLAN_FILE) if run.parent_run_id else None
    return Side(
        engine=run.engine or run.name,
        run=run.run_id,
        verdict=run.tags.get("engineworks.verdict", run.status.lower()),
        started_at=run.started_at,
        digest=run.tags.get(records.ENGINE_DIGEST, ""),
        documents=_documents(tracking, store, run),
        resolved=_resolved(plan, run),
        checks=tuple(read_json(tracking, run.run_id, records.VERDICT_FILE) or ()),
        accuracy=read_report(tracking, run.run_id, Accuracy),
        latency=read_report(tracking, run.run_id, Latency),
        size=run.metrics.get("engine_bytes"),
        error=(read_text(tracking, run.run_id, records.ERROR_FILE) or "").partition("\n")[0],
    )


def _resolved(plan: Any, run: records.RunSummary) -> Mapping[str, Any] | None:
    """The resolved recipe and the target's own options; limits of other precisions shape nothing of this engine."""
    if not plan:
        return None
    resolved = json.loads(json.dumps(plan["resolved"]))
    _, precision, target = (run.engine or "//").split("/")
    limits = resolved.get("accuracy", {}).get("limits", {})
    resolved["accuracy"]["limits"] = {k: v for k, v in limits.items() if k == precision}
    for key in ("precisions", "targets", "mixtures"):
        resolved.pop(key, None)
    return {**resolved, f"target {target}": plan.get("targets", {}).get(target)}


def _documents(tracking: Tracking, store: Store, run: records.RunSummary) -> dict[str, Mapping[str, Any]]:
    """Documents of all steps by kind, each with its key."""
    found = read_json(tracking, run.run_id, records.STEP_DOCUMENTS_FILE)
    if isinstance(found, dict):
        return found
    known: dict[str, Mapping[str, Any]] = {}
    for kind in (name for name, row in STEP_KINDS.items() if row.owner == "engine"):
        if document := read_json(tracking, run.run_id, records.document_file(kind)):
            known[kind] = document

    def inputs(key: str) -> Iterable[str]:
        artifact = store.get(key)
        if artifact is None:
            return ()
        known.setdefault(artifact.document["step"], {"key": key, **artifact.document})
        return list(artifact.document.get("inputs", {}).values())

    closure([key for document in known.values() for key in document.get("inputs", {}).values()], inputs)
    return known


def _with_places(explanation: Explanation, file: Path) -> Explanation:
    """Recipe lines get their present place, if the file is here and still has them."""
    from engineworks.recipe.yaml_nodes import Node, read_yaml

    try:
        node = read_yaml(file, str(file))
    except RecipeError:
        node = Node(Place(""), {})

    def placed(difference: Difference) -> Difference:
        parts = tuple(difference.place.split("."))
        there = node.get(parts[0]) is not None  # else it is in the defaults, or nowhere
        return replace(difference, place=str(node.key_place(parts)) if there else "")

    return replace(explanation, differences=tuple(placed(d) for d in explanation.differences))
