"""A published artifact, as its manifest describes it."""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from engineworks.errors import StoreError
from engineworks.fingerprint import digest_of
from engineworks.host.file_digests import RACY_SECONDS
from engineworks.store.json_files import parse_json, read_json_file, without_samples
from engineworks.typed_json import Report

R = TypeVar("R", bound=Report)

MANIFEST = "manifest.json"
DIGEST = re.compile("[0-9a-f]{64}")

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

    def read(self, kind: type[R]) -> R:
        """Read a report as its class. Raises `StoreError` if it is not what was stored, or not as documented."""
        return kind.parse(self._stored(kind.FILE), str(self.file(kind.FILE)))

    def read_measurements(self, kind: type[R], longest: int) -> R:
        """Read as `read` does, with lists of more than `longest` raw samples replaced by their length."""
        return kind.parse(without_samples(self._stored(kind.FILE), longest), str(self.file(kind.FILE)))

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
    except (OSError, ValueError):
        return None
    if not is_manifest(m):
        return None
    return Artifact(m["key"], Path(folder), m["step"], m["files"], m["document"], float(m["seconds"]))


def is_manifest(value: Any) -> bool:
    """Whether a JSON value has the form of a manifest. Whether the files are as it says is another question."""
    if not isinstance(value, dict) or not isinstance(value.get("document"), dict):
        return False
    files, seconds = value.get("files"), value.get("seconds")
    return (
        _is_text(value.get("key"))
        and _is_text(value.get("step"))
        and isinstance(seconds, float | int)
        and abs(seconds) < 1e15  # not NaN, and no integer that no float holds
        and isinstance(files, dict)
        and all(_is_name(name) and _is_entry(facts) for name, facts in files.items())
    )


def _is_entry(facts: Any) -> bool:
    if not isinstance(facts, dict):
        return False
    size, digest = facts.get("bytes"), facts.get("sha256")
    return isinstance(size, int) and size >= 0 and isinstance(digest, str) and bool(DIGEST.fullmatch(digest))


def _is_name(name: str) -> bool:
    """Whether a file's name stays in its folder: another host may have written the manifest."""
    parts = PurePosixPath(name).parts
    within = bool(parts) and ".." not in parts and not name.startswith("/")
    return within and name != MANIFEST and _is_text(name)


def _is_text(value: Any) -> bool:
    """Whether it is text that a file can hold, without lone surrogates."""
    return isinstance(value, str) and "\0" not in value and value == value.encode(errors="replace").decode()
