"""What is to blame for an engine's failure, as a value: the record and the report hold it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Culprit = Literal["engine", "lowered", "nothing", "unknown"]

BLAME_FILE = "blame.json"
"""Its name in the record, and under artifacts/blame."""


@dataclass(frozen=True)
class Blame:
    """What is to blame for an engine's failure.

    word: the engine alone, the lowered model, nothing that was found, or unknown because this host cannot tell.
    sentence: the finding. nodes: to blame, by name and operator. inside: the branches and bodies that hold them. error:
    of the smallest part, None after a crash. builds: of how many. bundle: the folder, '' without one. details:
    sentences. whole: nodes of the model.
    """

    engine: str
    word: Culprit
    sentence: str
    nodes: tuple[str, ...] = ()
    inside: tuple[str, ...] = ()
    error: float | None = None
    builds: int = 0
    whole: int = 0
    bundle: str = ""
    details: tuple[str, ...] = ()
    pieces: tuple[Mapping[str, Any], ...] = field(default=())

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Blame:
        lists = ("nodes", "inside", "details", "pieces")
        fields: dict[str, Any] = {k: tuple(v) if k in lists else v for k, v in value.items()}
        return cls(**fields)
