"""A published result, as its manifest tells of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Artifact:
    """A published result: its folder, its files with digests, and the document that its key is the digest of."""

    key: str
    path: Path
    step: str
    files: Mapping[str, Mapping[str, Any]]
    document: Mapping[str, Any]
    seconds: float

    def file(self, name: str) -> Path:
        return self.path / name

    def read_json(self, name: str) -> Any:
        return json.loads(self.file(name).read_text(encoding="utf-8"))

    @property
    def bytes(self) -> int:
        return sum(int(f["bytes"]) for f in self.files.values())


def read_manifest(place: Path) -> Artifact | None:
    """The artifact in this folder, unchecked; None where it has no manifest that can be read."""
    try:
        m = json.loads((place / MANIFEST).read_text(encoding="utf-8"))
        return Artifact(m["key"], place, m["step"], m["files"], m["document"], float(m["seconds"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
