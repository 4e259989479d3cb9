"""The champion of an engine: the version now served, as described by the registry and its own run. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from engineworks.measure.accuracy_report import Accuracy
from engineworks.typed_json import Document


@dataclass(frozen=True)
class ChampionIdentity(Document):
    """The served version of an engine.

    engine: id, recipe/precision/target. digest: sha256 of the engine file. build_key: key of its build's artifact in
    the store, '' if unknown. run: id of the MLflow run that recorded it.
    """

    engine: str
    model: str
    version: str
    digest: str
    build_key: str
    run: str

    def __str__(self) -> str:
        return f"the champion (version {self.version} of {self.model})"


@dataclass(frozen=True)
class Champion(ChampionIdentity):
    """accuracy: its report. compare: the document of the step that made the report. Both are None if the run holds
    none."""

    accuracy: Accuracy | None = None
    compare: Mapping[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """The champion's identity, without its reports."""
        return {f.name: getattr(self, f.name) for f in fields(ChampionIdentity)}


@dataclass(frozen=True)
class Champions:
    """Champions by engine id, and the places to look for their engines (see `settings.Settings`)."""

    by_engine: Mapping[str, Champion] = field(default_factory=dict)
    artifacts: str = ""
    store: str = ""
    tracking_uri: str | None = None
    unknown_because: str = ""
    """Why the champion lookup failed; '' if it succeeded."""
    lost: Mapping[str, str] = field(default_factory=dict)
    """By engine: why MLflow lacks the champion that the list of champions names."""

    @property
    def places(self) -> dict[str, str | None]:
        return {"artifacts": self.artifacts, "store": self.store, "tracking_uri": self.tracking_uri}


NONE = Champions()
"""For a recipe that asks for no comparison, or before the first release."""
