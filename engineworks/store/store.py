"""The store: one folder per step's key, written once, verified on every read.

    <root>/objects/ab/abcd…/manifest.json + files     published by one atomic rename, read-only
    <root>/latest/<step id>.json                      the newest key of a step, to explain a new key
    <root>/locks/  <root>/partial/                    one lock per key being built; unpublished folders
    <root>/caches/<digest>/                           a device's compiled data, reproducible; never shared

Writing: hit? return · lock · look again · build in `partial/` · digest · rename. Readers never see partial artifacts: a
missing or damaged one is a miss. The kernel drops an flock when its holder dies, `kill -9` included.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engineworks.errors import StoreError
from engineworks.fingerprint import digest_of
from engineworks.host.atomic_write import write_atomically
from engineworks.host.file_digests import digest_file
from engineworks.host.lock import is_locked, locked
from engineworks.store.artifact import MANIFEST, Artifact, R, read_manifest
from engineworks.store.clock import Published, now
from engineworks.store.json_files import read_json_file

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Errors for a file that cannot grow: no space, no quota, RLIMIT_FSIZE."""

UNFINISHED = ".unfinished"
"""Suffix of a partial folder in which a step works, under the lock of its key."""

FETCH, SETTLE = ".fetch", ".settle"
"""Ends of the names of further locks of a key: while it is fetched from a remote store, and while it is uploaded."""

UNUSED_CACHE_S = 30 * 86400.0
"""Seconds after which `sweep` deletes a device's unused cache."""


class Store:
    """A store in a local folder; `SharedStore` adds a remote store."""

    AGAIN = "it is built again"

    def __init__(self, root: Path) -> None:
        self.root = root
        self._verified: set[str] = set()

    def has(self, key: str) -> bool:
        """Whether the artifact exists and its files have the right sizes; does not read contents (for planning)."""
        artifact = self.peek(key)
        if artifact is not None:
            return self._damage(artifact, contents=False) is None
        return self._has_elsewhere(key)

    def get(self, key: str, *, echo: Callable[[str], None] | None = None) -> Artifact | None:
        """Return the artifact after checking its digests (once per process), None for a miss.

        A damaged artifact is a miss: it is moved away and `echo` gets the reason.
        """
        artifact, why = self.peek(key), None
        if artifact is not None:
            why = self._damage(artifact, contents=key not in self._verified)
            if why is None:
                self._verified.add(key)
                return self._settled(artifact)
        elif (self.place(key) / MANIFEST).exists():
            why = "its manifest cannot be read"
        if why is not None:
            self.remove(key)
            if echo:
                step = f"{artifact.step} " if artifact else ""
                echo(f"stored {step}{key[:12]} is damaged ({why}): {self.AGAIN}")
        return self._fetch(key, echo)

    def peek_report(self, key: str, kind: type[R]) -> R | None:
        """Read a report of a local artifact, without its digest and without fetching: for what `plan` knows only if it
        is here."""
        try:
            return kind.read(self.place(key))
        except StoreError:
            return None

    def require(self, key: str) -> Artifact:
        """Call `get` for a key that must exist."""
        artifact = self.get(key)
        if artifact is None:
            raise StoreError(f"artifact {key[:12]} is missing from the store {self.root}", hint="run the build again")
        return artifact

    @contextlib.contextmanager
    def writing(self, key: str, document: Mapping[str, Any], step: str) -> Iterator[Writing]:
        """Build `key` under its lock. `hit` is set if the artifact exists or another process has just published it,
        else fill `folder`.

        A clean exit digests and publishes the folder; an error publishes nothing. A full disk is a `StoreError`, also
        if a child reported it.
        """
        if self.peek(key) is not None and (here := self.get(key)) is not None:
            yield Writing(folder=here.path, hit=here)
            return
        with self._locked(key), self._full_is_reported(step):
            artifact = self.get(key)
            if artifact is not None:
                yield Writing(folder=artifact.path, hit=artifact)
                return
            for left in (self.root / "partial").glob(f"{key}.*{UNFINISHED}"):  # under the lock: its builder is dead
                shutil.rmtree(left, ignore_errors=True)
            folder = self._partial(key, UNFINISHED)
            writing = Writing(folder=folder)
            started = time.monotonic()
            try:
                yield writing
                writing.published = self._publish(key, writing, document, step, time.monotonic() - started)
            finally:
                shutil.rmtree(folder, ignore_errors=True)

    @property
    def here(self) -> Store:
        """Return this store's local part, without a remote store."""
        return self

    def publish_waiting(self) -> int:
        """Upload artifacts that a remote store did not accept when built. Returns the number uploaded."""
        return 0

    @property
    def outage(self) -> str:
        """Return a message if local artifacts wait for a remote store, else ''."""
        return ""

    def latest(self, step: str) -> Mapping[str, Any] | None:
        """Return the document of the newest artifact of this step, whatever its key."""
        try:
            value = read_json_file(f"{self.root}/latest/{step}.json")
        except (OSError, ValueError):
            return None
        return value if isinstance(value, dict) else None

    def latest_of(self, kind: str) -> Iterator[Mapping[str, Any]]:
        """Yield the newest document of every step whose id ends with `/<kind>`."""
        root = self.root / "latest"
        for file in sorted(root.glob(f"**/{kind}.json")):
            document = self.latest(file.relative_to(root).with_suffix("").as_posix())
            if document is not None:
                yield document

    def device_cache(self, document: Mapping[str, Any]) -> Path:
        """Return a folder for data that a device's libraries compile and can reuse. It is local, one per document
        (device, driver and versions), and may be lost at any time."""
        folder = self.root / "caches" / digest_of(document)
        if not folder.is_dir():
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "key.json").write_text(json.dumps(document, indent=1), encoding="utf-8")
        os.utime(folder)
        return folder

    def keys(self) -> Iterator[str]:
        """Yield every key that has a folder here, damaged or not."""
        for folder in sorted((self.root / "objects").glob("??/*")):
            yield folder.name

    def published_at(self, key: str) -> float:
        """Return when the artifact was published, as a POSIX time; 0 if it does not exist."""
        try:
            return (self.place(key) / MANIFEST).stat().st_mtime
        except OSError:
            return 0.0

    def age_s(self, key: str) -> float:
        """Return seconds since publication, by the clock that gives less."""
        wall = self.published_at(key)
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, OverflowError):
            boot, boot_s = read_json_file(self.place(key) / MANIFEST)["published"]
            return Published(wall, str(boot), float(boot_s)).age_s()
        return Published(wall).age_s()

    def size_of(self, key: str) -> int:
        """Return the bytes of the artifact's files."""
        return _bytes_in(self.place(key))

    def remove(self, key: str) -> int:
        """Remove the artifact atomically (renamed, then deleted). Returns the freed bytes."""
        place = self.place(key)
        away = self._partial(key)
        try:
            os.rename(place, away / "removed")
        except FileNotFoundError:
            shutil.rmtree(away, ignore_errors=True)
            return 0
        freed = _bytes_in(away)
        _delete(away)
        self._verified.discard(key)
        return freed

    def sweep(self, older_than_s: float) -> int:
        """Delete partial folders of killed processes, and unused locks. Returns the number of deleted folders."""
        swept = 0
        for folder in (self.root / "partial").glob("*"):
            key = folder.name.split(".")[0]
            works = any(is_locked(self._lock_of(f"{key}{use}")) for use in ("", FETCH, SETTLE))
            if _unchanged_s(folder) > older_than_s and not works:
                _delete(folder)
                swept += 1
        for folder in (self.root / "caches").glob("*"):
            if _unchanged_s(folder) > max(older_than_s, UNUSED_CACHE_S):
                _delete(folder)
        return swept

    def place(self, key: str) -> Path:
        """Return the artifact's local folder, which may not exist; unlike `get`, checks and fetches nothing."""
        return self.root.joinpath("objects", key[:2], key)

    def peek(self, key: str) -> Artifact | None:
        """Return a local artifact by its manifest, unchecked and without fetching; None where that is unreadable."""
        return read_manifest(f"{self.root}/objects/{key[:2]}/{key}")  # inlines `place`, for speed

    def _damage(self, artifact: Artifact, *, contents: bool, key: str = "") -> str | None:
        """Return why the artifact cannot be trusted, None if it can. key: by default its folder's name."""
        try:
            if artifact.document_digest != (key or artifact.path.name):
                return "its manifest belongs to another key"
        except (ValueError, RecursionError):  # NaN, surrogates or deep nesting, which no document of ours has
            return "its manifest cannot be read"
        if contents and (unlisted := _file_names(artifact.path) - artifact.files.keys() - {MANIFEST}):
            return f"{min(unlisted)} is not in its manifest"
        for name, facts in artifact.files.items():
            try:
                if os.stat(f"{artifact.path}/{name}").st_size != facts["bytes"]:
                    return f"{name} has another size"
                if contents and digest_file(artifact.path / name) != facts["sha256"]:
                    return f"{name} has other contents"
            except OSError:
                return f"{name} is missing or unreadable"
        return None

    def _partial(self, key: str, kind: str = "") -> Path:
        folder = self.root / "partial" / f"{key}.{os.getpid()}.{secrets.token_hex(4)}{kind}"
        try:
            folder.mkdir(parents=True)
        except OSError as error:
            raise StoreError(f"the store {self.root} cannot be written: {error.strerror}") from None
        return folder

    def _publish(self, key: str, writing: Writing, document: Mapping[str, Any], step: str, seconds: float) -> Artifact:
        folder = writing.folder
        if strange := next((f for f in folder.rglob("*") if f.is_symlink() or not (f.is_file() or f.is_dir())), None):
            raise StoreError(f"{step} made '{strange.name}', a link or no file: an artifact holds regular files only")
        files = {
            f.relative_to(folder).as_posix(): {"bytes": f.stat().st_size, "sha256": digest_file(f)}
            for f in sorted(folder.rglob("*"))
            if f.is_file()
        }
        for name, digest in writing.reports.items():
            if files.get(name, {}).get("sha256") != digest:
                raise StoreError(f"{step}: {name} was altered before it was stored", hint="build again")
        published = now().to_json()[1:]
        manifest = {
            "key": key, "step": step, "files": files, "document": document, "seconds": seconds, "published": published,
        }  # fmt: skip
        try:
            (folder / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
            artifact = self._share(key, folder)
            if artifact is not None:
                self.note_latest(step, document)
                return artifact
            self._move_in(key, folder)
            self.note_latest(step, document)
        except OSError as error:
            raise self._not_stored(step, error) from None
        self._verified.add(key)
        return Artifact(key, self.place(key), step, files, document, seconds)

    def _move_in(self, key: str, folder: Path) -> None:
        """Publish a complete folder here, read-only, by a rename."""
        for file in folder.rglob("*"):
            if file.is_file() and not file.is_symlink():
                file.chmod(0o444)
        place = self.place(key)
        place.parent.mkdir(parents=True, exist_ok=True)
        if place.exists():  # a damaged manifest, which `get` reported as a miss, is in the way
            self.remove(key)
        os.rename(folder, place)

    def _has_elsewhere(self, key: str) -> bool:
        """Whether `_fetch` would find it."""
        del key
        return False

    def _fetch(self, key: str, echo: Callable[[str], None] | None = None) -> Artifact | None:
        """Return an artifact from elsewhere that is not here."""
        del key, echo
        return None

    def _share(self, key: str, folder: Path) -> Artifact | None:
        """Share a complete folder before publishing it here; returns another host's artifact, if that must replace
        it."""
        del key, folder
        return None

    def _settled(self, artifact: Artifact) -> Artifact:
        """Return the artifact to use in place of a local one."""
        return artifact

    def note_latest(self, step: str, document: Mapping[str, Any]) -> None:
        """Make `latest` return this document."""
        file = self.root / "latest" / f"{step}.json"
        text = json.dumps(document)
        with contextlib.suppress(OSError, ValueError):
            if file.read_text(encoding="utf-8") == text:
                return
        write_atomically(file, text.encode())

    @contextlib.contextmanager
    def _full_is_reported(self, step: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno not in FULL:
                raise
            raise self._not_stored(step, error) from None

    def _not_stored(self, step: str, error: OSError) -> StoreError:
        hint = "free some space ('engineworks gc' may), and build again" if error.errno in FULL else ""
        return StoreError(f"{step} cannot be stored in {self.root}: {error.strerror}", hint=hint)

    @contextlib.contextmanager
    def _locked(self, key: str) -> Iterator[None]:
        with contextlib.ExitStack() as held:
            try:
                held.enter_context(locked(self._lock_of(key)))
            except OSError as error:
                raise StoreError(f"the store {self.root} cannot be written: {error.strerror}") from None
            yield

    def _lock_of(self, key: str) -> Path:
        return self.root / "locks" / f"{key}.lock"


@dataclass
class Writing:
    """A key being built: write files into `folder`; nothing to do if `hit`.

    reports: sha256 by name of files that must be published as their writer made them.
    """

    folder: Path
    hit: Artifact | None = None
    published: Artifact | None = None
    reports: Mapping[str, str] = field(default_factory=dict)


def _file_names(folder: Path) -> set[str]:
    """Return the names of all files in the folder and below, relative to it."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}


def _unchanged_s(folder: Path) -> float:
    """Return seconds since the folder changed; 0 if it has vanished."""
    try:
        return time.time() - folder.stat().st_mtime
    except OSError:
        return 0.0


def _bytes_in(folder: Path) -> int:
    """Return the bytes of the folder's files, without those that vanish meanwhile."""
    size = 0
    for file in folder.rglob("*"):
        with contextlib.suppress(OSError):
            size += file.lstat().st_size if file.is_file() else 0
    return size


def _delete(folder: Path) -> None:
    """Delete a folder, with what another process has not deleted meanwhile. Follows no links."""
    for path in [folder, *folder.rglob("*")]:
        with contextlib.suppress(OSError):
            if path.is_dir() and not path.is_symlink():
                path.chmod(0o755)
    shutil.rmtree(folder, ignore_errors=True)
