"""A local store in front of a remote one, for workers on several hosts.

A host uploads an artifact before publishing it locally. The first upload for a key wins and other hosts take its
artifact, so that later artifacts use the same bytes everywhere. If the remote store does not answer, a build fails with
one message; its artifacts stay here and are uploaded at their next use:

    <root>/pending/<key>      built here, not yet uploaded
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from engineworks.errors import StoreError
from engineworks.settings import Settings
from engineworks.store.artifact import Artifact, read_manifest
from engineworks.store.remote import RemoteStore
from engineworks.store.store import FETCH, SETTLE, Store


class SharedStore(Store):
    """A store whose folder is the cache of a remote one. Methods that call the remote store raise `StoreError` if it
    fails."""

    AGAIN = "it is fetched or built again"

    def __init__(self, root: Path, remote: RemoteStore) -> None:
        super().__init__(root)
        self._remote = remote
        self._unsent: dict[str, StoreError] = {}

    def size_of(self, key: str) -> int:
        """Return the bytes of the artifact's files here, or else in the remote store; 0 where that does not answer."""
        here = super().size_of(key)
        if here:
            return here
        try:
            manifest = self._remote.manifest(key)
        except StoreError:
            return 0
        return sum(int(facts["bytes"]) for facts in manifest["files"].values()) if manifest else 0

    def remove(self, key: str) -> int:
        self._pending(key).unlink(missing_ok=True)
        return super().remove(key)

    def sweep(self, older_than_s: float) -> int:
        return super().sweep(older_than_s) + self._remote.sweep(older_than_s)

    def _has_elsewhere(self, key: str) -> bool:
        return self._remote.has(key)

    def _publish(self, key: str, *arguments: Any, **options: Any) -> Artifact:
        published = super()._publish(key, *arguments, **options)
        unsent = self._unsent.pop(key, None)
        if unsent is not None:
            raise unsent
        return published

    def _share(self, key: str, folder: Path) -> Artifact | None:
        try:
            if self._remote.publish(key, folder):
                return None
            artifact = self._fetch(key)
            if artifact is not None:
                return artifact
            raise StoreError(f"{key[:12]} was in the store {self._remote.url}, damaged", hint="build again")
        except StoreError as error:
            self._unsent[key] = error
            return None

    def _move_in(self, key: str, folder: Path) -> None:
        if key in self._unsent:  # before it is visible here, and again after removal of a damaged one with its mark
            self._pending(key).parent.mkdir(parents=True, exist_ok=True)
            self._pending(key).touch()
        super()._move_in(key, folder)
        if key in self._unsent:
            self._pending(key).touch()

    def _fetch(self, key: str, echo: Callable[[str], None] | None = None) -> Artifact | None:
        """Fetch the remote store's artifact, once for all processes of this host; remove it there if it is damaged."""
        manifest = self._remote.manifest(key)
        if manifest is None:
            return None
        with self._locked(f"{key}{FETCH}"):
            stored = self.peek(key)
            if stored is not None and self._damage(stored, contents=True) is None:  # another process was faster
                self._verified.add(key)
                return stored
            folder = self._partial(key)
            try:
                return self._fetch_into(folder, manifest, key, echo)
            finally:
                shutil.rmtree(folder, ignore_errors=True)

    def _fetch_into(
        self, folder: Path, manifest: Mapping[str, Any], key: str, echo: Callable[[str], None] | None
    ) -> Artifact | None:
        why: str | None = "its files are not all there"
        if self._remote.fetch(manifest, key, folder):
            fetched = read_manifest(folder)
            why = "its manifest is not one" if fetched is None else self._damage(fetched, key=key, contents=True)
            if why is None:
                self._move_in(key, folder)
                self._verified.add(key)
                return self.peek(key)
        self._remote.remove(key, manifest["upload"])
        if echo:
            echo(f"{key[:12]} in the store {self._remote.url} is damaged ({why}): it is built again")
        return None

    def _settled(self, artifact: Artifact) -> Artifact:
        """Upload an artifact that could not be uploaded when built; return another host's artifact if that was
        faster."""
        key = artifact.key
        if not self._pending(key).exists():
            return artifact
        with self._locked(f"{key}{SETTLE}"):
            if not self._pending(key).exists():  # another process did it
                return self.peek(key) or artifact
            if self._remote.publish(key, artifact.path):
                self._pending(key).unlink(missing_ok=True)
                return artifact
            self.remove(key)
            return self._fetch(key) or artifact

    @property
    def here(self) -> Store:
        return Store(self.root)

    def publish_waiting(self) -> int:
        """Upload artifacts that could not be uploaded when built, until the remote store fails again."""
        sent = 0
        for mark in sorted((self.root / "pending").glob("*")):
            artifact = self.peek(mark.name)
            if artifact is None:  # nothing to upload
                mark.unlink(missing_ok=True)
                continue
            try:
                self._settled(artifact)
            except StoreError:
                break
            sent += 1
        return sent

    @property
    def outage(self) -> str:
        waiting = sum(1 for _ in (self.root / "pending").glob("*"))
        if not waiting:
            return ""
        place = self._remote.url
        return f"{waiting} results wait here for the store {place}: the next build or 'engineworks sync' sends them"

    def _pending(self, key: str) -> Path:
        return self.root / "pending" / key


def open_store(settings: Settings) -> Store:
    """Return the store of the settings: a local folder, or any fsspec URL with `<artifacts>/store` as its cache.

    Raises `StoreError` for a URL that fsspec does not know.
    """
    if "://" not in settings.store:
        return Store(Path(os.path.realpath(Path(settings.store).expanduser())))
    remote = RemoteStore(settings.store)
    return Store(Path(remote.root)) if remote.is_local else SharedStore(settings.artifacts / "store", remote)
