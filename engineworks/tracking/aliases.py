"""Names in the registry: which alias and which history belong to one target and precision. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Role = Literal["candidate", "champion"]

HISTORY = "engineworks.champions."
"""Tag of a registered model, followed by `<target>-<precision>`: JSON list of its champions, the present one last."""

LONGEST_HISTORY = 100


@dataclass(frozen=True)
class Slot:
    """One target and precision of a registered model: there is at most one champion and one candidate of each."""

    model: str
    target: str
    precision: str

    @property
    def name(self) -> str:
        """MLflow's aliases take letters, digits, `_` and `-`: the dot of a target's name becomes `_`."""
        return f"{self.target.replace('.', '_')}-{self.precision}"

    def alias(self, role: Role) -> str:
        return f"{role}-{self.name}"

    @property
    def history_tag(self) -> str:
        return HISTORY + self.name

    def uri(self, role: Role = "champion") -> str:
        """What `mlflow.pyfunc.load_model` takes."""
        return f"models:/{self.model}@{self.alias(role)}"


def registered_name(release_model: str | None, recipe: str) -> str:
    """The registered model of a recipe: its `release.model`, else the recipe's own name."""
    return release_model or recipe


def slot_of(model: str, engine: str) -> Slot:
    """The place of the engine (recipe/precision/target) in the registered model."""
    _, precision, target = engine.split("/")
    return Slot(model, target, precision)


def champions_of(tags: Mapping[str, str], slot: Slot, current: int | None) -> list[int]:
    """The slot's champions in order, the present one last, also where someone moved the alias by hand."""
    listed = _listed(tags, slot) or []
    if current is None:
        return listed
    return listed if listed[-1:] == [current] else [*listed, current]


def is_readable(tags: Mapping[str, str], slot: Slot) -> bool:
    """Whether the slot's list of champions can be read; one that is not there can."""
    return _listed(tags, slot) is not None


def _listed(tags: Mapping[str, str], slot: Slot) -> list[int] | None:
    try:
        return [int(v) for v in json.loads(tags.get(slot.history_tag, "[]"))]
    except (ValueError, TypeError):
        return None


def history_text(champions: Sequence[int]) -> str:
    return json.dumps(list(champions)[-LONGEST_HISTORY:])
