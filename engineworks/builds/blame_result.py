"""What is to blame for an engine's failure, as a value: the record and the report hold it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from engineworks.typed_json import Record

Culprit = Literal["engine", "lowered", "nothing", "unknown"]

BLAME_FILE = "blame.json"
"""Its name in the record, and under artifacts/blame."""


@dataclass(frozen=True)
class Blame(Record):
    """What is to blame for an engine's failure.

    culprit: the engine alone, the lowered model, nothing that was found, or unknown because this host cannot tell.
    message: the finding. nodes: to blame, by name and operator. inside: the branches and bodies that hold them. error:
    of the smallest part, None after a crash. builds: of the search. searched_nodes: of the model, or pieces of the
    lowered one. bundle: the folder, '' without one. details: more sentences.
    """

    engine: str
    culprit: Culprit
    message: str
    nodes: tuple[str, ...] = ()
    inside: tuple[str, ...] = ()
    error: float | None = None
    builds: int = 0
    searched_nodes: int = 0
    bundle: str = ""
    details: tuple[str, ...] = ()
    pieces: tuple[Mapping[str, Any], ...] = ()
