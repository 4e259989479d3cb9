"""Colors of precisions, the same in every plot of a report; parts of an engine's name; the order of verdicts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from engineworks.builds.results import BuildResult, EngineResult

SEVERITY = ("failed", "fail", "inconclusive", "unmeasured", "refused", "pass")
"""Verdicts, most severe first."""


def colors(result: BuildResult) -> dict[str, int]:
    """Index of the color of each precision, in the order of the engines."""
    return {p: i for i, p in enumerate(dict.fromkeys(precision_of(e.id) for e in result.engines))}


def precision_of(engine: str) -> str:
    return engine.split("/")[1]


def target_of(engine: str) -> str:
    return engine.split("/")[2]


def short(engine: str) -> str:
    """'int8/cpu': one report has one recipe."""
    return engine.partition("/")[2]


def by_target(engines: Iterable[EngineResult]) -> Iterator[tuple[str, list[EngineResult]]]:
    """Engines of each target, in their order."""
    known = list(engines)
    for target in dict.fromkeys(target_of(e.id) for e in known):
        yield target, [e for e in known if target_of(e.id) == target]
