"""Artifacts behind any fsspec URL, for workers on several hosts, with a local folder as the cache.

    <url>/objects/ab/<key>/manifest.json          put last, and only if none exists (If-None-Match: *): the first wins
    <url>/objects/ab/<key>/<upload>/…             the files of one upload, which its manifest names

Engines are not byte-for-byte reproducible, so two hosts that race must not mix their files. Each upload has a separate
folder, invisible before its manifest exists, and the loser takes the winner's artifact. Where a service ignores the
condition, the last writer wins; the manifest is read back, and readers still see complete artifacts. Readers check
every digest. `gc` deletes killed uploads.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import secrets
import time
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Any

from engineworks.errors import StoreError
from engineworks.store.artifact import MANIFEST, is_manifest
from engineworks.store.json_files import parse_json
from engineworks.store.service import Service

CLAIMS = 3
"""How often a manifest is put again after an inconclusive answer (409: two concurrent puts)."""

UPLOAD_S = 6 * 3600.0
"""Age in seconds up to which an upload may belong to a build that still runs on another host."""


class RemoteStore:
    """The shared side of a store. Every method raises `StoreError` where the service refuses or does not answer."""

    def __init__(self, url: str, service: Service | None = None) -> None:
        self.url = url
        self._service = service or Service(url)
        pipe = inspect.signature(self._service.files.pipe_file).parameters
        self._can_create = "mode" in pipe or any(p.kind is p.VAR_KEYWORD for p in pipe.values())

    @property
    def is_local(self) -> bool:
        """Whether the URL is a folder of this host (`file://…`), which needs no cache."""
        return self._service.is_local

    @property
    def root(self) -> str:
        return self._service.root

    def has(self, key: str) -> bool:
        return self.manifest(key) is not None

    def manifest(self, key: str) -> Mapping[str, Any] | None:
        """Return the artifact's manifest, None if there is none that can be read."""
        try:
            value = parse_json(self._service.call("cat_file", self._place(key, MANIFEST)))
        except (FileNotFoundError, ValueError):
            return None
        return value if is_manifest(value) and isinstance(value.get("upload"), str) else None

    def fetch(self, manifest: Mapping[str, Any], key: str, into: Path) -> bool:
        """Copy the artifact's files into the folder, its manifest last. False if files are missing."""
        try:
            for name, facts in manifest["files"].items():
                target = into / name
                target.parent.mkdir(parents=True, exist_ok=True)
                place = self._place(key, manifest["upload"], name)
                self._service.call("get_file", place, str(target), size=int(facts["bytes"]))
        except FileNotFoundError:
            return False
        (into / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
        return True

    def publish(self, key: str, folder: Path) -> bool:
        """Upload the artifact in the folder. False if another host was first: use that host's artifact.

        An interrupted upload is invisible.
        """
        if self.has(key):
            return False
        upload = secrets.token_hex(8)
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8")) | {"upload": upload}
        won = False
        try:
            for name, facts in manifest["files"].items():
                target = self._place(key, upload, name)
                self._service.make_folder(target.rpartition("/")[0])
                self._service.call("put_file", str(folder / name), target, size=int(facts["bytes"]))
            won = self._claim(key, manifest)
        finally:
            if not won:
                self._remove_upload(key, upload)
        return won

    def remove(self, key: str, upload: str) -> None:
        """Remove the artifact if it still is that upload; its manifest first, so that no reader finds a partial one."""
        manifest = self.manifest(key)
        if manifest is not None and manifest["upload"] == upload:
            with contextlib.suppress(FileNotFoundError):
                self._service.call("rm_file", self._place(key, MANIFEST))
        self._remove_upload(key, upload)

    def sweep(self, older_than_s: float) -> int:
        """Delete the files of uploads that ended without a manifest. Returns the number of deleted uploads.

        Younger than `UPLOAD_S` they may belong to a running build of another host, whatever the caller says.
        """
        older_than_s = max(older_than_s, UPLOAD_S)
        objects = f"{self.root.rstrip('/')}/objects"
        try:
            objects_found = self._service.call("find", objects, detail=True)
        except FileNotFoundError:
            return 0
        newest: dict[tuple[str, str], float] = {}
        for path, info in objects_found.items():
            parts = PurePosixPath(path.removeprefix(objects).strip("/")).parts
            if len(parts) > 3:
                place = (parts[1], parts[2])
                newest[place] = max(newest.get(place, 0.0), _changed_at(info))
        old = [place for place, when in newest.items() if time.time() - when > older_than_s]
        gone = [(key, upload) for key, upload in old if (self.manifest(key) or {}).get("upload") != upload]
        for key, upload in gone:
            self._remove_upload(key, upload)
        return len(gone)

    def _claim(self, key: str, manifest: Mapping[str, Any]) -> bool:
        """Put the manifest if none exists. Read it back to decide, whatever the service answered: the answer to a
        successful put may be lost, and its retry refused."""
        place, text = self._place(key, MANIFEST), json.dumps(manifest, indent=1).encode()
        refusal: StoreError | None = None
        condition: dict[str, Any] = {"mode": "create"} if self._can_create else {}
        self._service.make_folder(self._place(key))
        for attempt in range(CLAIMS):
            try:
                self._service.call("pipe_file", place, text, **condition)
            except FileExistsError:
                if attempt and self.manifest(key) is None:  # a damaged one is in the way
                    self._service.call("rm_file", place)
                    continue
            except StoreError as error:
                refusal = error
            there = self.manifest(key)
            if there is not None:
                return bool(there["upload"] == manifest["upload"])
            time.sleep(0.2 * 2**attempt)
        raise refusal or StoreError(f"the store {self.url} does not show the manifest of {key[:12]} that was put there")

    def _remove_upload(self, key: str, upload: str) -> None:
        """Delete what can be deleted; readers never see the rest, and `sweep` deletes it later."""
        with contextlib.suppress(FileNotFoundError, StoreError):
            self._service.call("rm", self._place(key, upload), recursive=True)

    def _place(self, key: str, *names: str) -> str:
        return "/".join((self.root.rstrip("/"), "objects", key[:2], key, *names))


def _changed_at(info: Mapping[str, Any]) -> float:
    """Return when a listed file was written, as a POSIX time; now where the service does not report it, so that it is
    not swept."""
    when = info.get("LastModified") or info.get("mtime") or info.get("created")
    if isinstance(when, datetime):
        return when.timestamp()
    return float(when) if isinstance(when, int | float) else time.time()
