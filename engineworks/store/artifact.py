"""A published result, as its manifest describes it."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from engineworks.fingerprint import RACY_SECONDS, digest_of
from engineworks.store.json_files import read_figures, read_json_file

MANIFEST = "manifest.json"

KEPT_MANIFESTS = 256
"""Manifests that a process remembers: some more than one recipe's artifacts, which are asked for again and again."""


@dataclass(frozen=True)
class Artifact:
    """A published result: its folder, its files with digests, and the document that its key is the digest of.

    Callers may share one value for a key: do not change what is in it.
    """

    key: str
    path: Path
    step: str
    files: Mapping[str, Mapping[str, Any]]
    document: Mapping[str, Any]
    seconds: float

    def file(self, name: str) -> Path:
        return self.path / name

    def read_json(self, name: str) -> Any:
        return read_json_file(self.file(name))

    def read_figures(self, name: str, longest: int) -> Any:
        """The same with raw samples replaced by their number, where there are more than `longest`."""
        return read_figures(self.file(name), longest)

    @property
    def bytes(self) -> int:
        return sum(int(f["bytes"]) for f in self.files.values())

    @cached_property
    def document_digest(self) -> str:
        """What its key must be."""
        return digest_of(self.document)


def read_manifest(place: Path | str) -> Artifact | None:
    """The artifact in this folder, unchecked; None where it has no manifest that can be read.

    A manifest is parsed again when its file is another one or was changed, by size, times and inode; within
    `RACY_SECONDS` of a change always, for what comes next may have the same time.
    """
    folder = str(place)
    try:
        stat = os.stat(f"{folder}/{MANIFEST}")
    except OSError:
        return None
    if abs(time.time() - max(stat.st_mtime, stat.st_ctime)) <= RACY_SECONDS:
        return _parse(folder)
    return _remembered(folder, (stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino, stat.st_dev))


@lru_cache(maxsize=KEPT_MANIFESTS)
def _remembered(folder: str, stat: tuple[int, ...]) -> Artifact | None:
    del stat  # the file that was parsed is the one that looks like this
    return _parse(folder)


def _parse(folder: str) -> Artifact | None:
    try:
        m = read_json_file(f"{folder}/{MANIFEST}")
        return Artifact(m["key"], Path(folder), m["step"], m["files"], m["document"], float(m["seconds"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
