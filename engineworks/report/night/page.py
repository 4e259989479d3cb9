"""A night's summary as Markdown: for Prefect's page, MLflow, a chat. What needs work comes first."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from engineworks.report.markdown import cell, table_lines
from engineworks.report.night.changes import recipe_of
from engineworks.report.values import number_text

if TYPE_CHECKING:
    from engineworks.report.night.summary import Summary

HEADINGS = ("engine", "verdict", "metric", "p50 ms", "samples/s", "MiB", "why")
"""p50 and samples/s are at the recipe's first named shape; MiB is the size of the engine."""

REBUILT = 50
"""Steps of a page; the JSON has all."""


def render_night(night: Summary) -> str:
    counts = ", ".join(f"{number} {verdict}" for verdict, number in night.counts.items()) or "no engines"
    lines = [f"# Night of {night.at:%Y-%m-%d}: {night.verdict}", "", f"{counts}. {_effort(night)}"]
    wrong = [r for r in night.recipes if r["error"]]
    if wrong:
        lines += ["", "## Recipes without a result", "", *(f"- **{r['recipe']}**: {cell(r['error'])}" for r in wrong)]
    lines += _not_part(night)
    lines += ["", "## Changed since last night", "", *_changes(night)]
    lines += ["", "## Engines", "", *table_lines(HEADINGS, map(_engine, night.engines))]
    lines += ["", "## Rebuilt, and why", "", *_rebuilt(night)]
    if night.slowest:
        rows = ((s["id"], f"{s['seconds']:.1f}") for s in night.slowest)
        lines += ["", "## Slowest steps", "", *table_lines(("step", "seconds"), rows)]
    headings = ("recipe", "seconds", "run", "reused", "failed", "MLflow run")
    lines += ["", "## Recipes", "", *table_lines(headings, _recipes(night))]
    return "\n".join(lines) + "\n"


def _not_part(night: Summary) -> list[str]:
    """What the counts leave out, with its last result."""
    lines = []
    for recipe in night.absent:
        verdicts = [e["verdict"] for e in night.known if recipe_of(e["id"]) == recipe["recipe"]]
        counts = ", ".join(f"{verdicts.count(w)} {w}" for w in dict.fromkeys(verdicts))
        last = f"no result: {recipe['error'].splitlines()[0]}" if recipe["error"] else counts or "no engines"
        lines.append(f"- **{recipe['recipe']}**: last on {recipe['at'][:10]}, {cell(last)}")
    if night.left_out:
        lines.append(f"- {len(night.left_out)} engines that --only left out: {', '.join(night.left_out)}")
    return ["", "## Not part of this run", "", *lines] if lines else []


def _effort(night: Summary) -> str:
    run = sum(r["steps"].get("run", 0) for r in night.recipes)
    reused = sum(r["steps"].get("reused", 0) for r in night.recipes)
    return f"{len(night.recipes)} recipes, {run} steps run, {reused} reused, in {night.seconds:.1f} s."


def _changes(night: Summary) -> Iterable[str]:
    if night.changes is None:
        return ["No night before this one is on record."]
    earlier = [f"{r['recipe']} (its last: {r['at'][:10]})" for r in night.rejoined]
    note = ["", f"Not part of last night, so compared with their own last: {', '.join(earlier)}."] if earlier else []
    return [*([f"- {cell(c)}" for c in night.changes] or [f"Nothing, since {night.before}."]), *note]


def _rebuilt(night: Summary) -> Iterable[str]:
    if not night.rebuilt:
        return ["Nothing: every result was in the store."]
    shown = night.rebuilt[:REBUILT]
    rows = ((s["id"], f"{s['seconds']:.1f}", s["reason"]) for s in sorted(shown, key=lambda s: str(s["id"])))
    more = len(night.rebuilt) - len(shown)
    return [*table_lines(("step", "seconds", "why"), rows), *(["", f"and {more} shorter ones"] if more else [])]


def _engine(engine: Mapping[str, Any]) -> tuple[str, ...]:
    status = f"{engine['verdict']} (waived)" if engine["waived"] and engine["verdict"] == "pass" else engine["verdict"]
    size = engine["bytes"]
    return (
        engine["id"], status, number_text(engine["metric"], 4), number_text(engine["latency_ms_p50"], 3),
        number_text(engine["throughput_per_s"], 0), number_text(size / 2**20 if size else None, 2), engine["why"],
    )  # fmt: skip


def _recipes(night: Summary) -> Iterable[tuple[str, ...]]:
    for recipe in sorted(night.recipes, key=lambda r: -r["seconds"]):
        counts = (str(recipe["steps"].get(k, 0)) for k in ("run", "reused", "failed"))
        yield (recipe["recipe"], f"{recipe['seconds']:.1f}", *counts, f"`{recipe['run']}`" if recipe["run"] else "")
