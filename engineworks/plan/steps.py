"""A step of a plan, what it depends on, and the table that a plan's steps are added to."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from engineworks.fingerprint import digest_of
from engineworks.plan.documents import Unkeyed
from engineworks.plan.kinds import StepName

State = Literal["cached", "to do", "needs another GPU", "not needed"]


@dataclass(frozen=True)
class Step:
    """One step: `document` is everything that shapes its result and `key` its digest; `inputs` are keys by role."""

    kind: StepName
    id: str
    key: str
    document: Mapping[str, Any]
    inputs: Mapping[str, str]
    unkeyed: Mapping[str, Any]
    state: State = "to do"
    reason: str = ""

    @property
    def params(self) -> Mapping[str, Any]:
        params: Mapping[str, Any] = self.document["params"]
        return params

    def to_json(self) -> dict[str, object]:
        return {"id": self.id, "kind": self.kind, "key": self.key, "state": self.state, "reason": self.reason}


class StepTable:
    """Steps by key, each after its inputs."""

    def __init__(self) -> None:
        self.by_key: dict[str, Step] = {}
        self._shared: dict[str, str] = {}

    def add(self, kind: StepName, name: str, document: Mapping[str, Any], unkeyed: Mapping[str, Any]) -> str:
        """Add a step unless it is there. Returns its key."""
        key = digest_of(document)
        if key not in self.by_key:
            inputs = {**document["inputs"], **unkeyed.get("reads", {})}
            self.by_key[key] = Step(kind, name, key, document, inputs, unkeyed)
        return key

    def add_once(self, kind: StepName, name: str, make: Callable[[], tuple[Mapping[str, Any], Unkeyed]]) -> str:
        """Add a step that all engines of a recipe share, making its document once. Returns its key."""
        if name not in self._shared:
            self._shared[name] = self.add(kind, name, *make())
        return self._shared[name]


def closure(keys: Iterable[str], inputs: Callable[[str], Iterable[str]]) -> set[str]:
    """Return these keys and all their direct and indirect inputs. inputs: the keys that a step reads, by its key."""
    pending, visited = list(keys), set[str]()
    while pending:
        key = pending.pop()
        if key not in visited:
            visited.add(key)
            pending.extend(inputs(key))
    return visited
