"""Recipes, targets, engines and champions, each as a text table with ages."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from engineworks.errors import RecipeError
from engineworks.report.words import age, many
from engineworks.settings import Settings
from engineworks.tracking.records import ENGINE_DIGEST, NOT_SELECTED, RunSummary
from engineworks.tracking.runs import Tracking, open_tracking

KINDS = ("recipes", "targets", "engines", "champions")
MOST_RUNS = 2000


@dataclass(frozen=True)
class Listing:
    """One table. rows: a cell per heading, as text. optional: headings that a narrow terminal leaves out, the first one
    first. note: a sentence below the table."""

    kind: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    optional: tuple[str, ...] = ()
    note: str = ""

    def to_json(self) -> list[dict[str, str]]:
        return [dict(zip(self.headings, row, strict=True)) for row in self.rows]


def make_listing(kind: str, settings: Settings, folder: Path, *, brief: bool = False) -> Listing:
    """Make the table of one of `KINDS`. folder: of the recipes. brief: count engines that no host has run.

    Raises `TrackingError` if MLflow does not answer.
    """
    tracking = open_tracking(settings.artifacts, settings.tracking_uri)
    if kind == "recipes":
        return _recipes(settings, tracking, folder)
    if kind == "targets":
        return _targets(folder)
    return _engines(tracking, brief) if kind == "engines" else _champions(tracking)


def _recipes(settings: Settings, tracking: Tracking, folder: Path) -> Listing:
    from engineworks.recipe.load import find_recipes, load_recipe

    builds = _newest(tracking, "build")
    rows = []
    for path in find_recipes(folder):
        try:
            recipe = load_recipe(path, data_roots=settings.data_roots)
        except RecipeError as error:
            rows.append((path.stem, str(path), "", many(len(error.problems), "problem"), ""))
            continue
        last = builds.get(recipe.name) or _last_build(tracking, recipe.name)
        verdict = last.tags.get("engineworks.verdict", last.status.lower()) if last else "never built"
        if last and (left_out := last.tags.get(NOT_SELECTED)):
            verdict += f", {many(int(left_out), 'engine')} not part of it"
        engines = len(recipe.recipe.precisions) * len(recipe.targets)
        rows.append((recipe.name, str(path), str(engines), verdict, age(last.started_at) if last else ""))
    note = "'engineworks validate' shows the problems" if any("problem" in row[3] for row in rows) else ""
    return Listing("recipes", ("recipe", "file", "engines", "last build", "age"), tuple(rows), ("file",), note)


def _targets(folder: Path) -> Listing:
    from engineworks.engines.backends import backend_facts
    from engineworks.recipe.load import load_targets

    rows = []
    for name, target in load_targets(folder).items():
        why_not = backend_facts(target.backend).why_not_run(target.compute_capability)
        capabilities = ", ".join(map(str, target.compute_capability))
        here = why_not.partition(";")[0] if why_not else "yes"  # the capability has a column of its own
        rows.append((name, target.backend, capabilities, target.pool, here, target.description))
    headings = ("target", "backend", "capability", "pool", "runs here", "what it is")
    return Listing("targets", headings, tuple(rows), ("what it is", "pool"))


def _engines(tracking: Tracking, brief: bool) -> Listing:
    rows, idle = [], 0
    for name, run in sorted(_newest(tracking, "engine").items()):
        if brief and run.tags.get("engineworks.verdict") == "unmeasured":
            idle += 1
            continue
        medians = [(v, k.partition("/")[2]) for k, v in run.metrics.items() if k.startswith("latency_ms_p50/")]
        fastest = "{:.3f} at {}".format(*min(medians)) if medians else ""
        size = run.metrics.get("engine_bytes")
        digest = run.tags.get(ENGINE_DIGEST, "")[:12]
        rows.append((
            name, run.tags.get("engineworks.verdict", run.status.lower()), fastest,
            f"{size / 2**20:.2f}" if size else "", digest, run.run_id, age(run.started_at),
        ))  # fmt: skip
    headings = ("engine", "verdict", "p50 ms", "MiB", "digest", "run", "age")
    note = f"{many(idle, 'engine')} not run yet; 'engineworks list engines' has all" if idle else ""
    return Listing("engines", headings, tuple(rows), ("run", "digest", "MiB"), note)


def _champions(tracking: Tracking) -> Listing:
    champions = tracking.champions() if tracking.exists() else []
    rows = [
        (c.engine, f"{c.model}/{c.version}", c.alias, c.digest[:12], c.since, age(c.created_at) if c.created_at else "",
         f"missing: {c.lost}" if c.lost else "")
        for c in champions
    ]  # fmt: skip
    headings = ("engine", "version", "alias", "digest", "champion since", "registered", "note")
    return Listing("champions", headings, tuple(rows), ("registered", "digest", "alias"))


def _last_build(tracking: Tracking, recipe: str) -> RunSummary | None:
    """Return the last build of a recipe that is not among the newest runs."""
    runs = tracking.find_runs(recipe=recipe, kind="build", limit=1) if tracking.exists() else []
    return runs[0] if runs else None


def _newest(tracking: Tracking, kind: str) -> dict[str, RunSummary]:
    """Return the newest run of every recipe or engine."""
    if not tracking.exists():
        return {}
    runs = tracking.find_runs(kind="build" if kind == "build" else "engine", limit=MOST_RUNS)
    newest: dict[str, RunSummary] = {}
    for run in runs:
        newest.setdefault(run.recipe if kind == "build" else run.engine or run.name, run)
    return newest
