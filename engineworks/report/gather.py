"""The background of a build's report, from MLflow: earlier builds, champions, links, passports."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from engineworks.builds.blame_result import BLAME_FILE, Blame
from engineworks.builds.from_mlflow import left_out
from engineworks.builds.recorded import engine_runs, read_json
from engineworks.builds.results import BuildResult
from engineworks.engines.engine_files import PASSPORT_FILE
from engineworks.errors import StoreError, TrackingError
from engineworks.measure.check import message_of
from engineworks.measure.layers import Layers
from engineworks.report.background import Background, Before, ChampionValues, Link, Point
from engineworks.report.night.summary import summarize_since
from engineworks.report.why.why import Side, explain
from engineworks.report.words import day
from engineworks.tracking.aliases import Slot, registered_name, slot_of
from engineworks.tracking.pages import LOCAL_PREFECT, view_key
from engineworks.tracking.records import (
    ENGINE_DIGEST,
    FLOW_PAGE,
    HARDWARE,
    MODEL,
    PLAN_FILE,
    STEP_DOCUMENTS_FILE,
    RunSummary,
)
from engineworks.tracking.runs import Tracking

POINTS = 30
"""Records of an engine that a trend shows."""

READ = 300
"""Runs that are read for the trends of all engines together; more would dominate the time of a report."""

EXPLAINED = 6
"""Changed engines whose inputs are compared with those of the build before."""

MOST_CAUSES = 12

FACTS = {
    "engineworks.file": "recipe file", "mlflow.source.git.commit": "commit", "engineworks.owner_of_recipe": "owner",
    "engineworks.host": "host", "mlflow.user": "user",
}  # fmt: skip


def gather_background(result: BuildResult, plan: Mapping[str, Any], tracking: Tracking) -> Background:
    """plan: as JSON. Where MLflow does not answer, the report has the rest and the reason."""
    resolved = plan.get("resolved") or {}
    known = Background(
        description=str(resolved.get("description") or ""), facts={"recipe file": str(plan.get("file", ""))},
        resolved=resolved, passports=dict(_passports_here(result)),
    )  # fmt: skip
    try:
        return _from_record(known, result, plan, tracking)
    except TrackingError as error:
        message = f"Earlier builds, champions and links are unknown: {error.message}"
        return replace(known, missing=(message,))


def _from_record(known: Background, result: BuildResult, plan: Mapping[str, Any], tracking: Tracking) -> Background:
    build = tracking.get_run(result.run)
    runs = {run.engine or run.name: run for run in engine_runs(tracking, build)}
    before = _build_before(tracking, build)
    older = {run.engine or run.name: run for run in engine_runs(tracking, before)} if before else {}
    passports = dict(known.passports)
    for engine in result.engines:
        if engine.id not in passports and engine.id in runs and engine.sidecar:
            passports[engine.id] = read_json(tracking, runs[engine.id].run_id, PASSPORT_FILE) or {}
    champions = _champions(tracking, result, plan)
    return replace(
        known,
        at=build.started_at,
        facts=_facts(tracking, build),
        links=tuple(_links(tracking, build, runs, result)),
        passports=passports,
        before=_before(tracking, result, before, older, runs, known.resolved) if before else None,
        points=_points(tracking, result, runs),
        champions=champions,
        champion_layers=dict(_champion_layers(tracking, result, champions, runs)),
        lost=tuple(_lost(tracking, result, plan)),
        runs={engine: run.run_id for engine, run in runs.items()},
        blames=dict(_blames(tracking, result, runs)),
    )


def _champion_layers(
    tracking: Tracking, result: BuildResult, champions: Mapping[str, ChampionValues], runs: Mapping[str, RunSummary]
) -> Iterator[tuple[str, Layers]]:
    """Layers of the champions that another run measured."""
    for engine in result.engines:
        champion = champions.get(engine.id)
        own = runs[engine.id].run_id if engine.id in runs else ""
        if engine.layers and champion and champion.point and champion.point.run != own:
            recorded = read_json(tracking, champion.point.run, Layers.FILE)
            if recorded:
                yield engine.id, Layers.from_json(recorded)


def _blames(tracking: Tracking, result: BuildResult, runs: Mapping[str, RunSummary]) -> Iterator[tuple[str, Blame]]:
    for engine in result.engines:
        if engine.verdict in ("fail", "failed") and engine.id in runs:
            recorded = read_json(tracking, runs[engine.id].run_id, BLAME_FILE)
            with suppress(StoreError):  # another version of Engineworks wrote it
                if recorded:
                    yield engine.id, Blame.from_json(recorded)


def _passports_here(result: BuildResult) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for engine in result.engines:
        if engine.passport is not None and engine.passport.is_file():
            yield engine.id, json.loads(engine.passport.read_text(encoding="utf-8"))


def _facts(tracking: Tracking, build: RunSummary) -> dict[str, str]:
    facts = {name: build.tags[tag] for tag, name in FACTS.items() if build.tags.get(tag)}
    if not tracking.has_pages:
        facts["MLflow's page"] = f"{tracking.pages().run(build.run_id)} after: {tracking.ui_hint()}"
    if (page := build.tags.get(FLOW_PAGE, "")).startswith(LOCAL_PREFECT):
        facts["Prefect's page"] = f"{page} after: prefect server start (engineworks build -v shows the environment)"
    return facts


def _links(
    tracking: Tracking, build: RunSummary, runs: Mapping[str, RunSummary], result: BuildResult
) -> Iterator[Link]:
    if (page := build.tags.get(FLOW_PAGE)) and not page.startswith(LOCAL_PREFECT):
        yield Link("Prefect flow run", page)
    if not tracking.has_pages:  # no server runs: `_facts` says how to start one
        return
    pages = tracking.pages()
    yield Link("MLflow run", pages.run(build.run_id))
    yield Link("this report in MLflow", pages.artifact(build.run_id, "report.html"))
    measured = [runs[e.id].run_id for e in result.engines if e.latency and e.id in runs]
    if len(measured) > 1:
        yield Link("compare the engines in MLflow", pages.compare(measured))
    yield Link("all builds' engines in MLflow", pages.view(view_key(result.recipe)))


def _build_before(tracking: Tracking, build: RunSummary) -> RunSummary | None:
    """The recipe's newest build that ended before this one began."""
    builds = tracking.find_runs(recipe=build.recipe, kind="build", limit=50)
    ended = ("FINISHED", "FAILED")
    older = (r for r in builds if r.run_id != build.run_id and r.started_at < build.started_at and r.status in ended)
    return next(older, None)


def point_of(run: RunSummary) -> Point:
    """What a trend needs of an engine's run."""
    p50 = {name.partition("/")[2]: v for name, v in run.metrics.items() if name.startswith("latency_ms_p50/")}
    cosines = [v for name, v in run.metrics.items() if name.startswith("cosine/")]
    worst = None if any(map(math.isnan, cosines)) else min(cosines, default=None)
    versions = {k.removeprefix("versions."): v for k, v in run.params.items() if k.startswith("versions.")}
    hardware = json.loads(run.tags.get(HARDWARE, "{}"))
    versions |= {str(k): str(v) for k, v in hardware.items() if v not in (None, "")}
    if run.tags.get(MODEL):
        versions["model"] = run.tags[MODEL][:8]
    return Point(
        run.run_id, run.started_at, run.tags.get("engineworks.verdict", run.status.lower()),
        run.tags.get(ENGINE_DIGEST, ""), p50, run.metrics.get("metric"), worst,
        run.metrics.get("engine_bytes"), versions, run.tags.get("engineworks.why", ""), run.parent_run_id or "",
    )  # fmt: skip


def _points(tracking: Tracking, result: BuildResult, runs: Mapping[str, RunSummary]) -> dict[str, tuple[Point, ...]]:
    """Of engines that were measured or compared: others have nothing that moves but their size."""
    engines = [e for e in result.engines if e.latency or e.accuracy]
    each = min(POINTS, max(8, READ // max(1, len(engines))))
    points = {}
    for engine in engines:
        now = runs.get(engine.id)
        listed = tracking.find_runs(engine=engine.id, kind="engine", limit=each)
        older = [r for r in listed if now is None or (r.run_id != now.run_id and r.started_at <= now.started_at)]
        points[engine.id] = tuple(point_of(r) for r in reversed([*([now] if now else []), *older]))
    return points


def _champions(tracking: Tracking, result: BuildResult, plan: Mapping[str, Any]) -> dict[str, ChampionValues]:
    """Those that the plan knew; where the recipe asks for no comparison, those of the registry."""
    planned = {e["id"]: e["champion"] for e in plan.get("engines", ()) if e.get("champion")}
    versions = {engine: (c["model"], c["version"], c["run"]) for engine, c in planned.items()}
    if not versions:
        slots = {slot.alias("champion"): engine for slot, engine in _slots(result, plan).items()}
        behind = tracking.versions_behind(_registered(result, plan), slots)
        listed = {slots[alias]: (v.model, v.version, v.run, v.engine) for alias, v in behind.items()}
        versions = {engine: known[:3] for engine, known in listed.items() if known[3] == engine}  # no smoke build's
    return {
        engine: ChampionValues(model, version, _point_of_run(tracking, run))
        for engine, (model, version, run) in versions.items()
    }


def _registered(result: BuildResult, plan: Mapping[str, Any]) -> str:
    release = (plan.get("resolved") or {}).get("release") or {}
    return registered_name(release.get("model"), result.recipe)


def _slots(result: BuildResult, plan: Mapping[str, Any]) -> dict[Slot, str]:
    """The engines by their place in the registry."""
    return {slot_of(_registered(result, plan), e.id): e.id for e in result.engines}


def _lost(tracking: Tracking, result: BuildResult, plan: Mapping[str, Any]) -> Iterator[str]:
    """A sentence for each champion that is missing in MLflow; none for a smoke build, which has no champion."""
    if (plan.get("resolved") or {}).get("recipe", result.recipe).endswith("@smoke"):
        return
    planned = {e["id"]: e["champion_lost"] for e in plan.get("engines", ()) if e.get("champion_lost")}
    if not planned:
        slots = _slots(result, plan)
        planned = {slots[slot]: standing.lost for slot, standing in tracking.standings(slots).items() if standing.lost}
    yield from (f"{engine}: the champion is missing: {why}." for engine, why in planned.items())


def _point_of_run(tracking: Tracking, run: str) -> Point | None:
    try:
        return point_of(tracking.get_run(run)) if run else None
    except TrackingError:  # deleted since
        return None


def _before(
    tracking: Tracking, result: BuildResult, before: RunSummary, older: Mapping[str, RunSummary],
    runs: Mapping[str, RunSummary], resolved: Mapping[str, Any],
) -> Before:  # fmt: skip
    plan = read_json(tracking, before.run_id, PLAN_FILE) or {}
    missed = {*left_out(plan), *(e["id"] for e in plan.get("engines", ()) if e["id"] not in older)}
    rest = {e.id: newest for e in result.engines if e.id in missed and (newest := _newest(tracking, e.id, before))}
    shape = next((name for e in result.engines for name in (e.latency.shapes if e.latency else ())), "")
    points = {engine: point_of(run) for engine, run in {**rest, **older}.items()}
    refused = {r["id"]: message_of(r) for r in plan.get("refused", ())}
    changes = summarize_since(result, points, refused, shape, missed)
    changed = {change.partition(": ")[0] for change in changes}
    pairs = [(older[e.id], runs[e.id]) for e in result.engines if e.id in changed and e.id in older and e.id in runs]
    recipes = (plan.get("resolved") or {}, resolved)
    causes = _causes(tracking, pairs[:EXPLAINED], recipes) if changes else ()
    return Before(before.run_id, before.started_at, changes, causes, tuple(_apart(result, missed, rest)))


def _newest(tracking: Tracking, engine: str, build: RunSummary) -> RunSummary | None:
    """The engine's newest run before this build, which it was not part of."""
    listed = tracking.find_runs(engine=engine, kind="engine", limit=50)
    return next((run for run in listed if run.started_at < build.started_at), None)


def _apart(result: BuildResult, missed: Collection[str], rest: Mapping[str, RunSummary]) -> Iterator[str]:
    """Which engines are not part of this build, and what those are compared with that the one before has not."""
    if result.not_selected:
        yield f"Not part of this run, because --only left them out: {', '.join(result.not_selected)}."
    for engine in (e.id for e in result.engines if e.id in missed):
        last = f"compared with its own last build of {day(rest[engine].started_at)}" if engine in rest else ""
        then = last or "there is nothing to compare it with"
        yield f"{engine} was not part of the build before, or had no result: {then}."


def _causes(
    tracking: Tracking, pairs: Sequence[tuple[RunSummary, RunSummary]], recipes: tuple[Mapping[str, Any], ...]
) -> tuple[str, ...]:
    """Lines of the recipe and inputs of steps that differ, once each, with the steps that read them."""
    descriptions: dict[str, None] = {}
    for runs in pairs:
        old, new = (_side(tracking, run, recipe) for run, recipe in zip(runs, recipes, strict=True))
        descriptions |= dict.fromkeys(_descriptions(explain(old, new).differences))
    causes = list(descriptions)
    more = len(causes) - MOST_CAUSES
    return (*causes[:MOST_CAUSES], *([f"and {more} more: engineworks why"] if more > 0 else []))


def _side(tracking: Tracking, run: RunSummary, recipe: Mapping[str, Any]) -> Side:
    documents = read_json(tracking, run.run_id, STEP_DOCUMENTS_FILE)
    return Side(run.engine or "", run.run_id, "", run.started_at, documents=documents or {}, resolved=recipe)


def _descriptions(differences: Iterable[Any]) -> Iterator[str]:
    for difference in differences:
        if difference.kind != "step":
            yield f"{difference.what} ({', '.join(difference.steps)})" if difference.steps else difference.what
