"""A night in one value: the result of every build, next to the night before. Pure: figures in, figures out.

The night before comes from MLflow, as the JSON that this module made of it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol

from engineworks.builds.results import BuildResult
from engineworks.measure.check import Check, deciding, message_of
from engineworks.report.background import Point
from engineworks.report.night.changes import changes_since, past_of, recipe_of
from engineworks.tensors import dims_text

NIGHT_JSON, NIGHT_PAGE = "nightly.json", "nightly.md"
"""The summary's files in the night's MLflow run."""

VERDICTS = ("failed", "fail", "inconclusive", "unmeasured", "pass", "refused")
"""Results of an engine, most severe first."""

SLOWEST = 10
"""Number of steps that are listed as the slowest."""


class Nights(Protocol):
    """Where nights are on record: `tracking.Tracking` is one."""

    def last_night_text(self, path: str) -> str | None: ...


@dataclass(frozen=True)
class Summary:
    """One night. at: its end, in UTC. seconds: what its builds took in all, or wall time where that was given.

    recipes: name, file, run, seconds, steps, error ('' or why there is no result) of each. engines: id, verdict, why,
    digest, p50 in ms, metric and bytes of each, most severe first. changes: sentences on what is not as it was when the
    recipe was part of a night before; None on the first night. rebuilt: id, seconds, reason of every step that ran,
    slowest first.

    absent: recipes of nights before that are not part of this one, as they were in their last, with its end as `at`.
    known: engines that this night has no result of (of such recipes, of recipes without a result, or left out by
    `--only`), as they were when there was one. left_out: ids of engines that `--only` left out. rejoined: recipes that
    the night before did not have, with the end of their last one.
    """

    at: datetime
    seconds: float
    recipes: tuple[Mapping[str, Any], ...]
    engines: tuple[Mapping[str, Any], ...]
    changes: tuple[str, ...] | None
    rebuilt: tuple[Mapping[str, Any], ...]
    before: str | None = None
    absent: tuple[Mapping[str, Any], ...] = ()
    known: tuple[Mapping[str, Any], ...] = ()
    left_out: tuple[str, ...] = ()
    rejoined: tuple[Mapping[str, Any], ...] = ()

    @property
    def not_part(self) -> tuple[Mapping[str, Any], ...]:
        """Engines that are not part of this night, as they were last; those of recipes without a result are part."""
        absent, left_out = {r["recipe"] for r in self.absent}, set(self.left_out)
        return tuple(e for e in self.known if recipe_of(e["id"]) in absent or e["id"] in left_out)

    @property
    def counts(self) -> dict[str, int]:
        """Engines by result, without zeros."""
        verdicts = [e["verdict"] for e in self.engines]
        return {verdict: verdicts.count(verdict) for verdict in VERDICTS if verdict in verdicts}

    @property
    def verdict(self) -> str:
        """The most severe verdict of what ran, as a build's; `failed` too where a recipe has no result."""
        if any(r["error"] for r in self.recipes):
            return "failed"
        return next((v for v in self.counts if v not in ("unmeasured", "refused")), next(iter(self.counts), "pass"))

    @property
    def slowest(self) -> tuple[Mapping[str, Any], ...]:
        return self.rebuilt[:SLOWEST]

    def to_json(self) -> dict[str, Any]:
        return {
            "at": self.at.isoformat(timespec="seconds"), "seconds": round(self.seconds, 3), "verdict": self.verdict,
            "counts": self.counts, "before": self.before,
            "changes": None if self.changes is None else list(self.changes),
            "recipes": [dict(r) for r in self.recipes], "engines": [dict(e) for e in self.engines],
            "rebuilt": [dict(s) for s in self.rebuilt], "slowest": [s["id"] for s in self.slowest],
            "absent": [dict(r) for r in self.absent], "known": [dict(e) for e in self.known],
            "left_out": list(self.left_out), "rejoined": [dict(r) for r in self.rejoined],
        }  # fmt: skip

    def to_json_text(self) -> str:
        return json.dumps(self.to_json(), indent=1, allow_nan=False)

    def metrics(self) -> dict[str, float]:
        """The series that MLflow draws over the nights."""
        counts = {f"engines_{verdict}": float(number) for verdict, number in self.counts.items()}
        steps = {
            f"steps_{k}": float(sum(r["steps"].get(k, 0) for r in self.recipes)) for k in ("run", "reused", "failed")
        }
        wrong = {
            "recipes": float(len(self.recipes)),
            "recipes_failed": float(sum(1 for r in self.recipes if r["error"])),
            "recipes_not_part": float(len(self.absent)),
            "engines_not_part": float(len(self.not_part)),
        }
        return counts | steps | wrong | {"night_s": self.seconds, "changes": float(len(self.changes or ()))}


Result = BuildResult | Mapping[str, Any]
"""A build's result, or its JSON as another host sends it, or `{"recipe": NAME, "error": WHY}` where there is none."""


def summarize_night(
    results: Iterable[Result], tracking: Nights, *, at: datetime | None = None, seconds: float | None = None,
    recipe_files: Sequence[str] = (),
) -> Summary:  # fmt: skip
    """The night of these builds, next to the recorded nights. at: its end, by default now. seconds: wall
    time of the whole night, by default the sum of its builds. recipe_files: all of the folder, chosen or not: a recipe
    of this folder whose file is not among them was removed.

    Raises `TrackingError` where MLflow does not answer; a record that cannot be read counts as none.
    """
    text = tracking.last_night_text(NIGHT_JSON)
    return summarize(results, _read(text), at=at or datetime.now(UTC), seconds=seconds, recipe_files=recipe_files)


def summarize(
    results: Iterable[Result], before: Mapping[str, Any] | None, *, at: datetime, seconds: float | None = None,
    recipe_files: Sequence[str] = (),
) -> Summary:  # fmt: skip
    """The same with the night before as a value, None for the first night."""
    builds = [r.to_json() if isinstance(r, BuildResult) else r for r in results]
    past = past_of(before, recipe_files)
    recipes = past.same_names([_recipe(build) for build in builds])
    left_out = tuple(i for b in builds for i in b.get("not_selected", ()))
    engines = [_engine(e) for b in builds for e in b.get("engines", ())]
    engines += [_refused(r) for b in builds for r in b.get("refused", ())]
    engines.sort(key=lambda e: (VERDICTS.index(e["verdict"]), e["id"]))
    ran = sorted((s for b in builds for s in b.get("ran", ())), key=lambda s: -s["seconds"])
    changes = None if before is None else tuple(changes_since(past, recipes, engines, left_out))
    took = sum(r["seconds"] for r in recipes) if seconds is None else seconds
    since = None if before is None else str(before.get("at", ""))
    names, gone = {r["recipe"] for r in recipes}, past.gone(recipes)
    back = [name for name in past.recipes if name in names and name in past.absent]
    return Summary(
        at, took, recipes, tuple(engines), changes, tuple(ran), since,
        absent=tuple(r for name, r in past.recipes.items() if name not in names and name not in gone),
        known=past.still_known(recipes, engines, left_out),
        left_out=left_out,
        rejoined=tuple({"recipe": name, "at": past.recipes[name]["at"]} for name in back),
    )  # fmt: skip


def summarize_since(
    result: BuildResult, before: Mapping[str, Point], refused: Mapping[str, str], shape: str,
    left_out: Iterable[str] = (),
) -> tuple[str, ...]:  # fmt: skip
    """Sentences on what changed since an earlier build of the recipe, as in a night's summary. before: by engine.
    refused: by engine, why it was. shape: whose medians are compared. left_out: engines that `--only` left out of the
    earlier build."""
    old = [
        {"id": engine, "verdict": p.verdict, "why": p.why, "digest": p.digest, "latency_ms_p50": p.p50_ms.get(shape),
         "metric": p.metric}
        for engine, p in before.items()
    ]  # fmt: skip
    old += [_refused({"id": engine, "message": message}) for engine, message in refused.items()]
    new = result.to_json()
    engines = [*map(_engine, new["engines"]), *map(_refused, new["refused"])]
    past = past_of({"engines": old, "left_out": left_out})
    return tuple(changes_since(past, [_recipe(new)], engines, result.not_selected))


def _read(text: str | None) -> Mapping[str, Any] | None:
    try:
        value = json.loads(text) if text else None
    except ValueError:
        return None
    return value if isinstance(value, Mapping) and "engines" in value else None


def _recipe(build: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "recipe": build["recipe"], "file": str(build.get("file") or ""), "run": build.get("run", ""),
        "seconds": float(build.get("seconds", 0.0)),
        "steps": dict(build.get("steps", {})), "error": str(build.get("error") or ""),
    }  # fmt: skip


def _engine(engine: Mapping[str, Any]) -> dict[str, Any]:
    metric = (engine.get("accuracy") or {}).get("metric") or {}
    shapes: Mapping[str, Any] = engine.get("latency") or {}
    first = next((f"{name} {dims_text(values.get('dims', {}))}" for name, values in shapes.items()), "")
    return {
        "id": engine["id"], "verdict": engine["verdict"], "waived": bool(engine.get("waived")), "why": _why(engine),
        "digest": engine.get("digest"), "bytes": engine.get("bytes"),
        "latency_ms_p50": engine.get("latency_ms_p50"), "throughput_per_s": engine.get("throughput_per_s"),
        "metric": metric.get("engine"), "metric_name": metric.get("name", ""),
        "shape": first, **_served(engine.get("served") or {}),
    }  # fmt: skip


def _served(report: Mapping[str, Any]) -> dict[str, float | None]:
    """Figures of the package on a server; None without one, or without a load."""
    load = report.get("load") or {}
    watched = load.get("watched") or {}
    return {
        "served_ready_s": report.get("ready_s"), "served_per_s": load.get("rate", load.get("completed_per_s")),
        "served_p99_ms": load.get("latency_ms_p99"), "served_gpu_busy": watched.get("gpu_busy"),
        "served_gpu_mib": watched.get("gpu_mib"), "served_memory_mib": watched.get("memory_mib"),
    }  # fmt: skip


def _why(engine: Mapping[str, Any]) -> str:
    if engine.get("error"):
        return str(engine["error"]).splitlines()[0]
    check = deciding(map(Check.from_json, engine.get("checks", ())))
    return check.message if check else ""


def _refused(engine: Mapping[str, Any]) -> dict[str, Any]:
    nothing = dict.fromkeys(("digest", "bytes", "latency_ms_p50", "throughput_per_s", "metric"))
    nothing |= _served({})
    return {"id": engine["id"], "verdict": "refused", "waived": False, "why": message_of(engine), **nothing}
