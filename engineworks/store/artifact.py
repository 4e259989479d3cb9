"""A published artifact, as its manifest describes it."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from engineworks.errors import StoreError
from engineworks.fingerprint import RACY_SECONDS, digest_of
from engineworks.store.json_files import parse_figures, parse_json, read_json_file

MANIFEST = "manifest.json"

KEPT_MANIFESTS = 256
"""Manifests that a process remembers: more than one recipe's artifacts, which are read again and again."""


@dataclass(frozen=True)
class Artifact:
    """A published artifact: its folder, its files with digests, and the document whose digest is its key.

    Callers may share one object for a key: do not modify it.
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
        """Read a JSON file. Raises `StoreError` if it is not what was stored."""
        return parse_json(self._stored(name))

    def read_figures(self, name: str, longest: int) -> Any:
        """Read JSON with lists of more than `longest` raw samples replaced by their length."""
        return parse_figures(self._stored(name), longest)

    def _stored(self, name: str) -> bytes:
        """Return the bytes that the manifest describes: those that are hashed are those that are read."""
        path = self.file(name)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise StoreError(f"{path}: cannot be read: {error.strerror}", hint="build again") from None
        if hashlib.sha256(data).hexdigest() != self.files.get(name, {}).get("sha256"):
            raise StoreError(f"{path}: was altered since it was stored", hint="build again")
        return data

    @property
    def bytes(self) -> int:
        return sum(int(f["bytes"]) for f in self.files.values())

    @cached_property
    def document_digest(self) -> str:
        """Return the digest that must equal its key."""
        return digest_of(self.document)


def read_manifest(place: Path | str) -> Artifact | None:
    """Return the artifact in this folder, unchecked; None where it has no readable manifest.

    A manifest is parsed again if its file changed by size, times or inode. Within `RACY_SECONDS` of a change it is
    always parsed, because a later change may have the same time.
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
    del stat  # only part of the cache's key
    return _parse(folder)


def _parse(folder: str) -> Artifact | None:
    try:
        m = read_json_file(f"{folder}/{MANIFEST}")
        return Artifact(m["key"], Path(folder), m["step"], m["files"], m["document"], float(m["seconds"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
