"""Artifacts behind any fsspec URL, for workers on several hosts; a local folder stands in front of it as the cache.

    <url>/objects/ab/<key>/manifest.json          put last, and only where none is (If-None-Match: *): who does, has won
    <url>/objects/ab/<key>/<upload>/…             the files of one upload, which its manifest names

Engines are not byte-for-byte reproducible, so two hosts that race must not write into each other's files: each upload
has a folder of its own, nothing in it is seen before its manifest is there, and the loser takes the winner's result.
Where a service ignores the condition the last writer wins; it is read back, and what is seen is still whole. Whoever
fetches checks every digest. What a killed upload left is swept by `gc`.
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
from engineworks.store.artifact import MANIFEST
from engineworks.store.service import Service

CLAIMS = 3
"""How often a manifest is put where the service answers neither yes nor no (409: two at once)."""


class RemoteStore:
    """The shared side of a store. Every method raises `StoreError` where the service refuses or does not answer."""

    def __init__(self, url: str, service: Service | None = None) -> None:
        self.url = url
        self._service = service or Service(url)
        pipe = inspect.signature(self._service.files.pipe_file).parameters
        self._can_create = "mode" in pipe or any(p.kind is p.VAR_KEYWORD for p in pipe.values())

    @property
    def is_local(self) -> bool:
        """Whether the URL is a folder of this host (`file://…`), which needs no cache in front."""
        return self._service.is_local

    @property
    def root(self) -> str:
        return self._service.root

    def has(self, key: str) -> bool:
        return self.manifest(key) is not None

    def manifest(self, key: str) -> Mapping[str, Any] | None:
        """What the artifact consists of, None if there is none."""
        try:
            value = json.loads(self._service.call("cat_file", self._place(key, MANIFEST)))
        except (FileNotFoundError, ValueError):
            return None
        return value if isinstance(value, dict) and isinstance(value.get("upload"), str) else None

    def fetch(self, manifest: Mapping[str, Any], key: str, into: Path) -> bool:
        """Copy the artifact's files into the folder, its manifest last; False if they are not all there, or if the
        manifest is not of this format."""
        try:
            for name, facts in manifest["files"].items():
                target = into / _within(name)
                target.parent.mkdir(parents=True, exist_ok=True)
                place = self._place(key, manifest["upload"], name)
                self._service.call("get_file", place, str(target), size=int(facts["bytes"]))
        except (FileNotFoundError, KeyError, TypeError, ValueError, AttributeError):
            return False
        (into / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
        return True

    def publish(self, key: str, folder: Path) -> bool:
        """Copy the artifact in the folder there. False if another host was first: then its result is the one to use.

        Interrupted at any moment, nothing of it can be seen.
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
        """Take the artifact away if it still is that upload; its manifest first, so that no reader finds half of it."""
        manifest = self.manifest(key)
        if manifest is not None and manifest["upload"] == upload:
            with contextlib.suppress(FileNotFoundError):
                self._service.call("rm_file", self._place(key, MANIFEST))
        self._remove_upload(key, upload)

    def sweep(self, older_than_s: float) -> int:
        """Delete the files of uploads that ended without a manifest. Returns how many uploads went."""
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
        """Put the manifest where none is. Whatever the service answers, what is there afterwards decides: the answer to
        a put that was done may have been lost, and its repetition refused."""
        place, text = self._place(key, MANIFEST), json.dumps(manifest, indent=1).encode()
        refusal: StoreError | None = None
        condition: dict[str, Any] = {"mode": "create"} if self._can_create else {}
        self._service.make_folder(self._place(key))
        for attempt in range(CLAIMS):
            try:
                self._service.call("pipe_file", place, text, **condition)
            except FileExistsError:
                pass
            except StoreError as error:
                refusal = error
            there = self.manifest(key)
            if there is not None:
                return bool(there["upload"] == manifest["upload"])
            time.sleep(0.2 * 2**attempt)
        raise refusal or StoreError(f"the store {self.url} does not show the manifest of {key[:12]} that was put there")

    def _remove_upload(self, key: str, upload: str) -> None:
        """As well as it goes: what stays is never seen, and swept later."""
        with contextlib.suppress(FileNotFoundError, StoreError):
            self._service.call("rm", self._place(key, upload), recursive=True)

    def _place(self, key: str, *names: str) -> str:
        return "/".join((self.root.rstrip("/"), "objects", key[:2], key, *names))


def _within(name: str) -> str:
    """A file's name that stays in its folder: the manifest was written by somebody else."""
    parts = PurePosixPath(name).parts
    if not parts or ".." in parts or name.startswith("/") or name == MANIFEST:
        raise ValueError(name)
    return name


def _changed_at(info: Mapping[str, Any]) -> float:
    """When a listed file was written, as a POSIX time; now where the service does not say: then it is not swept."""
    when = info.get("LastModified") or info.get("mtime") or info.get("created")
    if isinstance(when, datetime):
        return when.timestamp()
    return float(when) if isinstance(when, int | float) else time.time()
