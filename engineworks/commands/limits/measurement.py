"""Recipe → evidence for its limits: every engine that this host runs, compared once more with bounds, and its past."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from engineworks.builds.progress import listener
from engineworks.builds.step import run_needed
from engineworks.engines.sidecar import Sidecar
from engineworks.errors import EngineworksError, StepError, TrackingError
from engineworks.host.file_digests import FileDigests
from engineworks.measure.accuracy_report import Accuracy
from engineworks.measure.slices import LOST_BELOW
from engineworks.measure.suggested_limits import Evidence, Suggestion, suggest_limits
from engineworks.plan.plan import Plan, PlannedEngine, plan_recipes
from engineworks.recipe.load import LoadedRecipe, load_recipe, refuse_decoders
from engineworks.recipe.samples import EVERY_SAMPLE
from engineworks.settings import Settings
from engineworks.store.shared import open_store
from engineworks.store.store import Store
from engineworks.tracking.runs import open_tracking

NIGHTS = 14
"""Earlier runs of an engine that are read: two weeks of nights."""


@dataclass(frozen=True)
class Limits:
    """suggestions: in the recipe's order of precisions. silent: sentences on precisions without one."""

    loaded: LoadedRecipe
    suggestions: tuple[Suggestion, ...]
    silent: tuple[str, ...]


def measure_limits(recipe: Path, settings: Settings, *, only: str | None = None) -> Limits:
    """Build and compare what this host can run, as a build does; read the record. Raises `RecipeError` and the errors
    of the steps that all engines share."""
    loaded = load_recipe(recipe, data_roots=settings.data_roots)
    refuse_decoders([loaded], "limits")
    selected = loaded
    if loaded.recipe.accuracy.metric is not None:
        files = replace(loaded.files, evaluation=replace(loaded.files.evaluation, slices=EVERY_SAMPLE))
        selected = replace(loaded, files=files)
    store = open_store(settings)
    (plan,) = plan_recipes([selected], store, FileDigests(settings.artifacts / "digests.db"), only=only)
    suggestions, silent = list[Suggestion](), list[str]()
    for precision in dict.fromkeys(engine.precision for engine in plan.engines):
        engines = [engine for engine in plan.engines if engine.precision == precision]
        found, reasons = list[Evidence](), list[str]()
        for engine in engines:
            try:
                found.append(_evidence(plan, engine, store, settings))
            except EngineworksError as error:
                reasons.append(f"{engine.id}: {error.message}")
        silent += reasons
        limits = next((v for k, v in loaded.recipe.accuracy.limits.items() if str(k) == precision), None)
        before = limits.model_dump(exclude_none=True) if limits else {}
        suggestions += suggest_limits(precision, found, before)
    return Limits(loaded, tuple(suggestions), tuple(silent))


def _evidence(plan: Plan, engine: PlannedEngine, store: Store, settings: Settings) -> Evidence:
    if engine.unmeasured_because:
        raise StepError(f"its limits stay: it cannot run here: {engine.unmeasured_because}")
    run_needed(plan, [engine.steps["compare"]], store)
    report = store.require(engine.steps["compare"]).read(Accuracy)
    slices = report.metric.slices if report.metric else ()
    digest = store.require(engine.steps["build"]).read(Sidecar).sha256
    nights = dict(_nights(engine.id, digest, settings))
    evidence = Evidence(engine.id, report.worst_cosine, slices[0] if slices else None, report.metric, nights)
    if evidence.ruined:
        raise StepError(evidence.ruined)
    return evidence


def _nights(engine: str, digest: str, settings: Settings) -> Iterator[tuple[str, Sequence[float]]]:
    """Cosines and ratios of earlier runs that built another engine, without lost ones: equal bytes give equal ones."""
    from engineworks.tracking.records import ENGINE_DIGEST

    tracking = open_tracking(settings.artifacts, settings.tracking_uri)
    try:
        runs = tracking.find_runs(engine=engine, kind="engine", limit=NIGHTS) if tracking.exists() else []
    except TrackingError as error:
        listener().echo(f"earlier runs are unknown: {error.message}")
        runs = []
    others: dict[str, Mapping[str, float]] = {
        run.tags[ENGINE_DIGEST]: run.metrics
        for run in runs
        if run.tags.get(ENGINE_DIGEST) not in (None, "", digest) and run.metrics.get("metric_ratio", 1) >= LOST_BELOW
    }
    for name, metric in (("cosine", "worst_cosine"), ("metric_ratio", "metric_ratio")):
        yield name, [metrics[metric] for metrics in others.values() if metric in metrics]
