"""Engines that share one line of a table: those that no host has run, by reason, and refused ones, by reason."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from engineworks.builds.results import BuildResult, EngineResult
from engineworks.plan.plan import Refused
from engineworks.report.palette import short, target_of
from engineworks.report.words import many

NAMED = 4
"""A group of at most so many engines names them all."""


@dataclass(frozen=True)
class Group:
    """engines: their ids, in the build's order. reason: why none of them ran, or why all are refused."""

    verdict: Literal["unmeasured", "refused"]
    engines: tuple[str, ...]
    reason: str
    gpu: bool = True

    @property
    def message(self) -> str:
        """'17 engines for 6 GPU types: built, not run (no NVIDIA GPU here)'."""
        count = many(len(self.engines), "engine")
        if self.verdict == "refused":
            return f"{count} refused ({self.names}): {self.reason}"
        targets = len({target_of(engine) for engine in self.engines})
        return f"{count} for {many(targets, 'GPU type' if self.gpu else 'target')}: built, not run ({self.reason})"

    @property
    def names(self) -> str:
        """'fp32/h100, fp16/h100', or their targets if there are many."""
        if len(self.engines) <= NAMED:
            return ", ".join(map(short, self.engines))
        return "all for " + ", ".join(dict.fromkeys(map(target_of, self.engines)))


def never_run(engine: EngineResult) -> bool:
    """Whether the engine was built and nothing of it was measured."""
    return engine.verdict == "unmeasured" and not engine.accuracy and not engine.latency


def groups(result: BuildResult) -> tuple[Group, ...]:
    """One per reason: engines that did not run here first, then refused ones."""
    return (*_unmeasured([e for e in result.engines if never_run(e)]), *refused_groups(result.refused))


def refused_groups(refused: Sequence[Refused]) -> tuple[Group, ...]:
    by_reason: dict[str, list[str]] = {}
    for one in refused:
        by_reason.setdefault(one.message, []).append(one.id)
    return tuple(Group("refused", tuple(ids), reason) for reason, ids in by_reason.items())


def shared_reason(message: str) -> str:
    """The part of a reason that engines of several targets share: it comes before the semicolon."""
    return message.partition(";")[0].removeprefix("Not run: ").rstrip(".")


def _unmeasured(engines: Sequence[EngineResult]) -> tuple[Group, ...]:
    by_reason: dict[tuple[str, bool], list[str]] = {}
    for engine in engines:
        reason = shared_reason(engine.checks[0].message) if engine.checks else "not compared"
        gpu = bool(engine.sidecar and engine.sidecar.target.get("compute_capability"))
        by_reason.setdefault((reason, gpu), []).append(engine.id)
    return tuple(Group("unmeasured", tuple(ids), reason, gpu) for (reason, gpu), ids in by_reason.items())
