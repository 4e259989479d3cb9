"""What a report shows next to the build's result: origin, earlier builds, champions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from engineworks.builds.blame_result import Blame
from engineworks.measure.layers import Layers


@dataclass(frozen=True)
class Link:
    name: str
    url: str


@dataclass(frozen=True)
class Point:
    """One record of an engine. at: seconds since the epoch. p50_ms: by shape. versions: by name, of the libraries, with
    the hardware's facts and the model's digest. build: its build's run."""

    run: str
    at: float
    verdict: str
    digest: str = ""
    p50_ms: Mapping[str, float] = field(default_factory=dict)
    metric: float | None = None
    cosine: float | None = None
    bytes: float | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    why: str = ""
    build: str = ""


@dataclass(frozen=True)
class ChampionValues:
    """The version that is served now, and the figures of its run; None where the run lacks them."""

    model: str
    version: str
    point: Point | None


@dataclass(frozen=True)
class Before:
    """The build before this one. changes: sentences on changed results, () for none. causes: changed inputs. apart:
    sentences on engines that are not part of both builds."""

    run: str
    at: float
    changes: tuple[str, ...]
    causes: tuple[str, ...] = ()
    apart: tuple[str, ...] = ()


@dataclass(frozen=True)
class Background:
    """facts: where the build comes from, by name. passports: by engine. resolved: the whole recipe with its defaults.
    points: by engine, oldest first, this build's own last. runs: the engine's MLflow run. missing: sentences on what
    could not be found out. lost: sentences on champions that are missing in MLflow.
    blames: what is to blame, by failed engine, where that was searched for.
    champion_layers: by engine."""

    at: float = 0.0
    description: str = ""
    facts: Mapping[str, str] = field(default_factory=dict)
    links: tuple[Link, ...] = ()
    passports: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    resolved: Mapping[str, Any] = field(default_factory=dict)
    before: Before | None = None
    points: Mapping[str, tuple[Point, ...]] = field(default_factory=dict)
    champions: Mapping[str, ChampionValues] = field(default_factory=dict)
    runs: Mapping[str, str] = field(default_factory=dict)
    missing: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()
    blames: Mapping[str, Blame] = field(default_factory=dict)
    champion_layers: Mapping[str, Layers] = field(default_factory=dict)

    def setting(self, *path: str) -> Any:
        """The value at these keys of the resolved recipe, None where one is missing."""
        value: Any = self.resolved
        for key in path:
            value = (value or {}).get(key)
        return value


NOTHING = Background()
"""For a result without a record."""
