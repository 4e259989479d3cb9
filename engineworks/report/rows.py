"""The figures of a build as text: what the table on the terminal, the HTML page and the Markdown twin all show."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from engineworks.builds.results import BuildResult, EngineResult
from engineworks.measure.accuracy import worst_cosine
from engineworks.measure.ladder.ladder import ladder_words
from engineworks.report.figures import figure

HEADINGS = ("engine", "verdict", "metric", "cosine", "p50 ms", "p99 ms", "samples/s", "MiB", "why")
"""p50, p99 and samples/s are at the recipe's first named shape; MiB is the size of the engine."""


@dataclass(frozen=True)
class Row:
    cells: tuple[str, ...]
    verdict: str


def rows(result: BuildResult) -> list[Row]:
    """One row per engine, then one per refused one. What a ladder says of an engine stands in for why."""
    words = ladder_words(result.ladder)
    built = [Row(_cells(e, words.get(e.id)), e.verdict) for e in result.engines]
    blank = ("",) * (len(HEADINGS) - 3)
    return built + [Row((r.id, "refused", *blank, r.sentence), "refused") for r in result.refused]


def why(engine: EngineResult) -> str:
    """The sentence that decided: the step that failed, else the first check that did not pass, waived ones last."""
    if engine.failure:
        return engine.failure.message.splitlines()[0]
    open_checks = [c for c in engine.checks if c.verdict != "pass"]
    return next((c.words for c in sorted(open_checks, key=lambda c: bool(c.waived))), "")


def _cells(engine: EngineResult, ladder: str | None) -> tuple[str, ...]:
    accuracy, latency = engine.accuracy or {}, engine.latency or {}
    metric: Mapping[str, Any] = accuracy.get("metric") or {}
    outputs: Mapping[str, Any] = accuracy.get("outputs") or {}
    cosine = worst_cosine(outputs)
    shape: Mapping[str, Any] = next(iter(latency.get("shapes", {}).values()), {})
    size = engine.sidecar.get("bytes")
    return (
        engine.id,
        engine.word,
        figure(metric.get("engine"), 4),
        "nan" if outputs and cosine is None else figure(cosine, 5),
        figure(shape.get("latency_ms_p50"), 3),
        figure(shape.get("latency_ms_p99"), 3),
        figure(shape.get("throughput_per_s"), 0),
        figure(size / 2**20 if size else None, 2),
        ladder or why(engine),
    )


def notes_of(result: BuildResult) -> list[str]:
    """The build's warnings but for those that stand with the calibration."""
    told = {sentence for health in result.calibration for sentence in health.warnings}
    return [sentence for sentence in result.warnings if sentence not in told]
