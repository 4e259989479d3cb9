"""A night in one value: what every build came to, beside the night before. Figures in, figures out: nothing is opened.

The night before comes from MLflow, as the JSON that this module made of it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol

from engineworks.report.background import Point
from engineworks.results import BuildResult

NIGHT_JSON, NIGHT_PAGE = "nightly.json", "nightly.md"
"""The summary's files in the night's MLflow run."""

WORDS = ("failed", "fail", "inconclusive", "unmeasured", "pass", "refused")
"""What an engine's night may end in, gravest first."""

SLOWEST = 10
"""Steps that are named as the slowest."""

MOVED = 0.05
"""Relative change of a median from which it is told. Between nights an unchanged engine is not measured again, so
that what is told was measured anew; whether it is a regression is the gate's to say."""


class Nights(Protocol):
    """Where nights are on record: `tracking.Tracking` is one."""

    def last_night_text(self, path: str) -> str | None: ...


@dataclass(frozen=True)
class Summary:
    """One night. at: its end, in UTC. seconds: what its builds took in all, or wall time where that was given.

    recipes: name, run, seconds, steps, error ('' or why there is no result) of each. engines: id, verdict, why,
    digest, p50 in ms, metric and bytes of each, gravest first. changes: sentences on what is not as it was the night
    before; None on the first night. rebuilt: id, seconds, reason of every step that ran, slowest first.
    """

    at: datetime
    seconds: float
    recipes: tuple[Mapping[str, Any], ...]
    engines: tuple[Mapping[str, Any], ...]
    changes: tuple[str, ...] | None
    rebuilt: tuple[Mapping[str, Any], ...]
    before: str | None = None

    @property
    def counts(self) -> dict[str, int]:
        """Engines by what they ended in; only what there was."""
        words = [e["verdict"] for e in self.engines]
        return {word: words.count(word) for word in WORDS if word in words}

    @property
    def verdict(self) -> str:
        """The gravest word of all; `failed` too where a recipe has no result."""
        if any(r["error"] for r in self.recipes):
            return "failed"
        return next(iter(self.counts), "pass")

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
        }  # fmt: skip

    def to_json_text(self) -> str:
        return json.dumps(self.to_json(), indent=1, allow_nan=False)

    def metrics(self) -> dict[str, float]:
        """What MLflow draws over the nights."""
        counts = {f"engines_{word}": float(number) for word, number in self.counts.items()}
        steps = {
            f"steps_{k}": float(sum(r["steps"].get(k, 0) for r in self.recipes)) for k in ("run", "reused", "failed")
        }
        wrong = {
            "recipes": float(len(self.recipes)),
            "recipes_failed": float(sum(1 for r in self.recipes if r["error"])),
        }
        return counts | steps | wrong | {"night_s": self.seconds, "changes": float(len(self.changes or ()))}


Result = BuildResult | Mapping[str, Any]
"""A build's result, or its JSON as another host sends it, or `{"recipe": NAME, "error": WHY}` where there is none."""


def summarize_night(
    results: Iterable[Result], tracking: Nights, *, at: datetime | None = None, seconds: float | None = None
) -> Summary:
    """The night that these builds were, beside the last one on record. at: its end, by default now. seconds: wall
    time of the whole night, by default the sum of its builds.

    Raises `TrackingError` where MLflow does not answer; a record that can not be read counts as none.
    """
    text = tracking.last_night_text(NIGHT_JSON)
    return summarize(results, _read(text), at=at or datetime.now(UTC), seconds=seconds)


def summarize(
    results: Iterable[Result], before: Mapping[str, Any] | None, *, at: datetime, seconds: float | None = None
) -> Summary:
    """The same with the night before as a value, None for the first night."""
    builds = [r.to_json() if isinstance(r, BuildResult) else r for r in results]
    recipes = tuple(map(_recipe, builds))
    engines = [_engine(e) for b in builds for e in b.get("engines", ())]
    engines += [_refused(r) for b in builds for r in b.get("refused", ())]
    engines.sort(key=lambda e: (WORDS.index(e["verdict"]), e["id"]))
    ran = sorted((s for b in builds for s in b.get("ran", ())), key=lambda s: -s["seconds"])
    changes = None if before is None else tuple(_changes(before, recipes, engines))
    took = sum(r["seconds"] for r in recipes) if seconds is None else seconds
    since = None if before is None else str(before.get("at", ""))
    return Summary(at, took, recipes, tuple(engines), changes, tuple(ran), since)


def summarize_since(
    result: BuildResult, before: Mapping[str, Point], refused: Mapping[str, str], shape: str
) -> tuple[str, ...]:
    """Sentences on what is not as it was in an earlier build of the recipe, as a night tells them. before: by engine.
    refused: by engine, why it was. shape: whose medians are compared."""
    old = [
        {"id": engine, "verdict": p.verdict, "why": p.why, "digest": p.digest, "latency_ms_p50": p.p50_ms.get(shape),
         "metric": p.metric}
        for engine, p in before.items()
    ]  # fmt: skip
    old += [_refused({"id": engine, "sentence": sentence}) for engine, sentence in refused.items()]
    new = result.to_json()
    engines = [*map(_engine, new["engines"]), *map(_refused, new["refused"])]
    return tuple(_changes({"engines": old}, [_recipe(new)], engines))


def _read(text: str | None) -> Mapping[str, Any] | None:
    try:
        value = json.loads(text) if text else None
    except ValueError:
        return None
    return value if isinstance(value, Mapping) and "engines" in value else None


def _recipe(build: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "recipe": build["recipe"], "run": build.get("run", ""), "seconds": float(build.get("seconds", 0.0)),
        "steps": dict(build.get("steps", {})), "error": str(build.get("error") or ""),
    }  # fmt: skip


def _engine(engine: Mapping[str, Any]) -> dict[str, Any]:
    metric = (engine.get("accuracy") or {}).get("metric") or {}
    return {
        "id": engine["id"], "verdict": engine["verdict"], "waived": bool(engine.get("waived")), "why": _why(engine),
        "digest": engine.get("digest"), "bytes": engine.get("bytes"),
        "latency_ms_p50": engine.get("latency_ms_p50"), "throughput_per_s": engine.get("throughput_per_s"),
        "metric": metric.get("engine"),
    }  # fmt: skip


def _why(engine: Mapping[str, Any]) -> str:
    if engine.get("error"):
        return str(engine["error"]).splitlines()[0]
    open_checks = [c for c in engine.get("checks", ()) if c["verdict"] != "pass"]
    return next((str(c["sentence"]) for c in sorted(open_checks, key=lambda c: bool(c.get("waived")))), "")


def _refused(engine: Mapping[str, Any]) -> dict[str, Any]:
    nothing = dict.fromkeys(("digest", "bytes", "latency_ms_p50", "throughput_per_s", "metric"))
    return {"id": engine["id"], "verdict": "refused", "waived": False, "why": engine["sentence"], **nothing}


def _changes(
    before: Mapping[str, Any], recipes: Iterable[Mapping[str, Any]], engines: Iterable[Mapping[str, Any]]
) -> Iterable[str]:
    """Sentences, those on verdicts first. Engines of a recipe without a result are not gone: nothing is known."""
    old, new = {e["id"]: e for e in before["engines"]}, {e["id"]: e for e in engines}
    unknown = {r["recipe"] for r in recipes if r["error"]}
    was_wrong = {r["recipe"] for r in before.get("recipes", ()) if r.get("error")}
    for recipe in recipes:
        if recipe["error"] and recipe["recipe"] not in was_wrong:
            yield f"{recipe['recipe']}: no result: {recipe['error'].splitlines()[0]}"
    for name in sorted(was_wrong - unknown):
        yield f"{name}: has results again"
    both = [i for i in new if i in old]
    for i in both:
        if new[i]["verdict"] != old[i]["verdict"]:
            why = f": {new[i]['why']}" if new[i]["why"] else ""
            yield f"{i}: {old[i]['verdict']} → {new[i]['verdict']}{why}"
    yield from (f"{i}: new, {new[i]['verdict']}" for i in new if i not in old and i.partition("/")[0] not in was_wrong)
    yield from (
        f"{i}: gone, was {old[i]['verdict']}" for i in old if i not in new and i.partition("/")[0] not in unknown
    )
    for i in both:
        yield from _moved(i, old[i], new[i])


def _moved(engine: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterable[str]:
    if new["digest"] and old.get("digest") and new["digest"] != old["digest"]:
        yield f"{engine}: another engine, sha256 {old['digest'][:12]} → {new['digest'][:12]}"
    was, now = old.get("latency_ms_p50"), new["latency_ms_p50"]
    if was and now and abs(now / was - 1) >= MOVED:
        yield f"{engine}: median {was:.3g} → {now:.3g} ms ({now / was - 1:+.0%})"
    was, now = old.get("metric"), new["metric"]
    if was is not None and now is not None and was != now:
        yield f"{engine}: metric {was:.6g} → {now:.6g}"
