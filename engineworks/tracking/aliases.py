"""Names in the registry: the alias and the history of one target and precision. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Role = Literal["candidate", "champion"]

HISTORY = "engineworks.champions."
"""Tag of a registered model, followed by `<target>-<precision>`: JSON list of its champions, the present one last."""

LONGEST_HISTORY = 100

STATEMENT = "engineworks.statement."
"""Tag of a registered model, followed by `<target>-<precision>.<number>`: JSON of the statement of that release."""

LAST = "engineworks.champion/"
"""Tag of the experiment, followed by `<model>/<target>-<precision>`: JSON object of the slot's newest champion. It
outlives the registered model, whose deletion takes the list of champions along."""


@dataclass(frozen=True)
class Slot:
    """One target and precision of a registered model, with at most one champion and one candidate."""

    model: str
    target: str
    precision: str

    @property
    def name(self) -> str:
        """Return the slot's part of an alias. MLflow's aliases allow letters, digits, `_` and `-`: a dot becomes
        `_`."""
        return f"{self.target.replace('.', '_')}-{self.precision}"

    def alias(self, role: Role) -> str:
        return f"{role}-{self.name}"

    @property
    def history_tag(self) -> str:
        return HISTORY + self.name

    @property
    def statement_tags(self) -> str:
        """Return the beginning of the tags that hold the statements of its releases."""
        return f"{STATEMENT}{self.name}."

    @property
    def last_tag(self) -> str:
        return f"{LAST}{self.model}/{self.name}"

    def uri(self, role: Role = "champion") -> str:
        """Return the URI for `engineworks.load`."""
        return f"models:/{self.model}@{self.alias(role)}"


def registered_name(release_model: str | None, recipe: str) -> str:
    """Return a recipe's registered model: its `release.model`, else the recipe's own name."""
    return release_model or recipe


def slot_of(model: str, engine: str) -> Slot:
    """Return the slot of the engine (recipe/precision/target) in the registered model."""
    _, precision, target = engine.split("/")
    return Slot(model, target, precision)


def champions_of(tags: Mapping[str, str], slot: Slot, current: int | None) -> list[int]:
    """Return the slot's champions in order, the present one last, also after a manual change of the alias."""
    listed = _listed(tags, slot) or []
    if current is None:
        return listed
    return listed if listed[-1:] == [current] else [*listed, current]


def is_readable(tags: Mapping[str, str], slot: Slot) -> bool:
    """Whether the slot's list of champions is readable or missing."""
    return _listed(tags, slot) is not None


def _listed(tags: Mapping[str, str], slot: Slot) -> list[int] | None:
    return listed_versions(tags.get(slot.history_tag, "[]"))


def listed_versions(text: str) -> list[int] | None:
    """Read a list of champions, None where it is unreadable."""
    try:
        return [int(v) for v in json.loads(text)]
    except (ValueError, TypeError):
        return None


def history_text(champions: Sequence[int]) -> str:
    return json.dumps(list(champions)[-LONGEST_HISTORY:])
