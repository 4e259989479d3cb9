"""The report of the comparison of a candidate with the champion: how it was made, every round, and the result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from engineworks.measure.champion import ChampionIdentity
from engineworks.measure.regression import Comparison
from engineworks.typed_json import Document, Report, Size


@dataclass(frozen=True)
class Quad(Document):
    """Four blocks of runs in milliseconds, in the order ABBA or BAAB (A: champion, B: candidate)."""

    order: str
    ms: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Round(Document):
    """Both engines loaded, in this order, and timed. disturbances: why the round does not count. log_ratios: candidate
    over champion, by shape."""

    loaded: tuple[str, ...]
    disturbances: tuple[str, ...]
    log_ratios: Mapping[str, float]
    blocks: Mapping[str, tuple[Quad, ...]]


@dataclass(frozen=True)
class Attempt(Document):
    """One measurement in one process: all its rounds, and the result of every shape after them."""

    seconds: Size
    shapes: Mapping[str, Comparison]
    rounds: tuple[Round, ...]


@dataclass(frozen=True)
class Earlier(Document):
    """A comparison of the same two engines that did not decide: the key of its artifact, and its result."""

    key: str
    method: Literal["measured", "history"]
    confidence: float
    shapes: Mapping[str, Comparison] = field(default_factory=dict)


@dataclass(frozen=True)
class ChampionComparison(Report):
    """method: the same bytes, measured side by side, or compared with the record, because the champion does not run
    here (`why`). digest: of the candidate. history: by shape, digest and median in ms of earlier measurements."""

    FILE = "champion_comparison.json"

    champion: ChampionIdentity
    digest: str
    limit: float
    confidence: float
    earlier: tuple[Earlier, ...]
    method: Literal["identical", "measured", "history"]
    shapes: Mapping[str, Comparison] = field(default_factory=dict)
    attempts: tuple[Attempt, ...] = ()
    history: Mapping[str, tuple[tuple[str, float], ...]] = field(default_factory=dict)
    why: str = ""

    def summary(self) -> dict[str, Any]:
        """As JSON without the rounds."""
        shapes = {name: comparison.to_json() for name, comparison in self.shapes.items()}
        return {**self.champion.to_json(), "method": self.method, "limit": self.limit, "shapes": shapes}
