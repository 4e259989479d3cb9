"""Digests of files and folders, each file read once as long as it does not change."""

from __future__ import annotations

import hashlib
import os
import sqlite3
import time
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

from engineworks.fingerprint import digest_of
from engineworks.host.regular_files import open_regular

RACY_SECONDS = 2.0
"""A file changed this recently may change again within the clock's grain, so its digest is not remembered, as
in git."""


def digest_file(path: Path) -> str:
    """sha256 of a regular file's bytes, 64 hex digits. Raises `OSError`."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class FileDigests:
    """Digests of files, remembered by path, size, times and inode, so that planning does not read gigabytes again.

    memory: SQLite file to remember them in; None remembers nothing. An unusable file is ignored, because it only saves
    time.
    """

    def __init__(self, memory: Path | None) -> None:
        self._memory = memory
        self._known: dict[tuple[str, str], str] | None = None
        self._fresh: dict[tuple[str, str], str] = {}

    def digest(self, path: Path) -> str:
        stat = path.stat()
        name = os.fsencode(path).decode("utf-8", "backslashreplace")  # SQLite's text is Unicode
        key = (name, f"{stat.st_size}:{stat.st_mtime_ns}:{stat.st_ctime_ns}:{stat.st_ino}:{stat.st_dev}")
        known = self._load().get(key)
        if known is not None:
            return known
        digest = digest_file(path)
        if abs(time.time() - max(stat.st_mtime, stat.st_ctime)) > RACY_SECONDS:
            self._load()[key] = self._fresh[key] = digest
        return digest

    def digest_tree(self, files: Mapping[str, Path]) -> str:
        """One digest of several files under their names."""
        return digest_of({name: self.digest(path) for name, path in files.items()})

    def _load(self) -> dict[tuple[str, str], str]:
        if self._known is None:
            self._known = {}
            if self._memory is not None and self._memory.is_file():
                try:
                    with closing(sqlite3.connect(self._memory, timeout=5)) as db:
                        self._known = {(p, s): d for p, s, d in db.execute("SELECT path, stat, sha256 FROM digests")}
                except sqlite3.Error:
                    self._known = {}
        return self._known

    def save(self) -> None:
        """Remember the digests that were computed since the last call."""
        if not self._fresh or self._memory is None:
            return
        rows = [(path, stat, digest) for (path, stat), digest in self._fresh.items()]
        try:
            self._memory.parent.mkdir(parents=True, exist_ok=True)
            with closing(sqlite3.connect(self._memory, timeout=5)) as db, db:
                db.execute("CREATE TABLE IF NOT EXISTS digests (path TEXT PRIMARY KEY, stat TEXT, sha256 TEXT)")
                db.executemany("INSERT OR REPLACE INTO digests VALUES (?, ?, ?)", rows)
        except (sqlite3.Error, OSError):
            return
        self._fresh.clear()
