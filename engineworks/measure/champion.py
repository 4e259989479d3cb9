"""The champion of an engine: the version that is served now, as the registry and its own run tell of it. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Champion:
    """engine: its identity, recipe/precision/target. digest: sha256 of its engine file. build_key: of its build's
    artifact in the store, '' where nothing tells it. run: id of the MLflow run that recorded it. accuracy: its report,
    and compare: the document of the step that made it; None where the run holds none."""

    engine: str
    model: str
    version: str
    digest: str
    build_key: str
    run: str
    accuracy: Mapping[str, Any] | None = None
    compare: Mapping[str, Any] | None = None

    def to_json(self) -> dict[str, str]:
        """Who it is; not what it did."""
        return {k: v for k, v in asdict(self).items() if k not in ("accuracy", "compare")}

    def __str__(self) -> str:
        return f"the champion (version {self.version} of {self.model})"


def champion_from_json(value: Mapping[str, Any]) -> Champion:
    return Champion(**value)


@dataclass(frozen=True)
class Champions:
    """Champions by engine id, and the places where their engines may be found (see `settings.Settings`)."""

    by_engine: Mapping[str, Champion] = field(default_factory=dict)
    artifacts: str = ""
    store: str = ""
    tracking_uri: str | None = None
    unknown_because: str = ""
    """Why nobody can tell who the champions are; '' where it is known."""
    lost: Mapping[str, str] = field(default_factory=dict)
    """By engine, why its champion is missing in MLflow though the list of champions names one."""

    @property
    def places(self) -> dict[str, str | None]:
        return {"artifacts": self.artifacts, "store": self.store, "tracking_uri": self.tracking_uri}


NONE = Champions()
"""Of a recipe that asks for no comparison, or before the first release."""
