"""The first line of every screen: may this be shipped?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from engineworks.builds.results import BuildResult, EngineResult
from engineworks.report.palette import short
from engineworks.report.words import many

NAMED = 4
"""Engines that an answer names; it counts the others."""


@dataclass(frozen=True)
class Answer:
    """reply: the answer itself. message: the engines that it speaks of."""

    reply: Literal["Yes", "In part", "No", "Not yet"]
    message: str
    tone: str

    @property
    def text(self) -> str:
        return f"{self.reply}: {self.message}"


def may_ship(result: BuildResult) -> Answer:
    """Return the answer to "may I ship it?". Engines that a ladder dropped are never shipped, and fail no build."""
    counted = [e for e in result.decisive if e.id not in result.dropped]
    passed = [e for e in counted if e.verdict == "pass"]
    bad = [e for e in counted if e.verdict in ("failed", "fail")]
    open_ = [e for e in counted if e.verdict == "inconclusive"]
    idle = [e for e in counted if e.verdict == "unmeasured"]
    parts = [f"{_named(bad)} failed"] if bad else []
    parts += [f"{_named(open_)} {'is' if len(open_) == 1 else 'are'} inconclusive"] if open_ else []
    if passed and not parts:
        headline = f"{many(len(passed), 'engine')} passed" + _waived(passed)
    elif passed:
        headline = f"{_named(passed)} passed" + _waived(passed)
    else:
        headline = ""
    parts = [headline, *parts] if headline else parts
    if idle:
        parts.append(f"{len(idle)} built, not run here")
    if result.refused:
        parts.append(f"{len(result.refused)} refused")
    message = "; ".join(parts) or "no engine was built"
    if passed:
        return Answer("In part", message, "inconclusive") if bad or open_ else Answer("Yes", message, "pass")
    return Answer("No", message, "fail") if bad else Answer("Not yet", message, "unmeasured")


def _named(engines: Sequence[EngineResult]) -> str:
    names = ", ".join(short(e.id) for e in engines[:NAMED])
    return f"{names} and {len(engines) - NAMED} more" if len(engines) > NAMED else names


def _waived(engines: Sequence[EngineResult]) -> str:
    count = sum(bool(e.waived) for e in engines)
    return f" ({count} with a waiver)" if count else ""
