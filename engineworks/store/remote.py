"""Artifacts behind any fsspec URL, for workers on several hosts, with a local folder as the cache.

    <url>/objects/ab/<key>/manifest.json          put last, and only if none exists (If-None-Match: *): the first wins
    <url>/objects/ab/<key>/<upload>/…             the files of one upload, which its manifest names

Engines are not byte-for-byte reproducible, so two hosts that race must not mix their files. Each upload has a separate
folder, invisible before its manifest exists, and the loser takes the winner's artifact. Where a service ignores the
condition, the last writer wins; the manifest is read back, and readers still see complete artifacts. Readers check
every digest. `gc` deletes killed uploads.

Every call has a time limit, and every failure is one message. fsspec's limits are insufficient: s3fs tries a dead
endpoint 25 times, and a server that sends a byte per second never runs into a read timeout. Asynchronous filesystems
(s3, gcs, abfs, http) get a limit for the whole call; others keep their own limits.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import secrets
import sys
import time
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Any

from engineworks.errors import StoreError
from engineworks.store.artifact import MANIFEST, is_manifest
from engineworks.store.json_files import parse_json

REQUEST_LIMIT_S = 30.0
"""Time limit of one small request in seconds, including retries."""

SLOWEST_BYTES_PER_S = 256 * 1024
"""A transfer may take one more second per this many bytes; slower services are unusable."""

DOWN_S = 20.0
"""Seconds without another request after the service did not answer: a build of many engines fails once, not one limit
after the other."""

OPTIONS = {
    "s3": {
        "config_kwargs": {"connect_timeout": 5, "read_timeout": 15, "retries": {"max_attempts": 2, "mode": "standard"}}
    }
}
"""Options for opening a protocol's filesystem; FSSPEC_S3_… and AWS_… set the rest (endpoint, keys, region)."""

FOREIGN_ERRORS = (
    ("botocore.exceptions", "BotoCoreError"),
    ("aiohttp", "ClientError"),
    ("gcsfs.retry", "HttpError"),
    ("google.auth.exceptions", "GoogleAuthError"),
    ("azure.core.exceptions", "AzureError"),
)
"""Errors of clients that are not OSError, by the module that defines them."""

EXTRAS = {"s3": "s3", "s3a": "s3"}


class Service:
    """The filesystem of one URL. `call` runs its methods; `root` is the URL's path in it."""

    def __init__(self, url: str, *, request_limit_s: float = REQUEST_LIMIT_S) -> None:
        from fsspec.core import url_to_fs

        self.url = url
        self._request_limit_s = request_limit_s
        self._down: StoreError | None = None
        self._down_until = 0.0
        protocol = url.partition("://")[0]
        try:
            # No listings cache: another host may have written since.
            self.files, root = url_to_fs(url, use_listings_cache=False, **OPTIONS.get(protocol, {}))
        except (ImportError, ValueError) as error:
            extra = EXTRAS.get(protocol)
            hint = f"pip install 'engineworks[{extra}]'" if extra and isinstance(error, ImportError) else ""
            hint = hint or "a folder, or a URL such as s3://bucket/folder"
            raise StoreError(f"ENGINEWORKS_STORE={url}: {str(error).rstrip('.')}", hint=hint) from None
        self.root = str(root)
        if protocol in EXTRAS:
            self.files.retries = 2  # s3fs's own, around botocore's

    @property
    def is_local(self) -> bool:
        """Whether it is a folder of this host (`file://…`), which needs no cache."""
        protocol = self.files.protocol
        return "file" in ((protocol,) if isinstance(protocol, str) else protocol)

    def make_folder(self, path: str) -> None:
        """Create a folder where the filesystem has folders. Object stores have none, and s3fs would create a missing
        bucket."""
        if not getattr(self.files, "async_impl", False):
            self.call("makedirs", path, exist_ok=True)

    def call(self, method: str, *arguments: Any, size: int = 0, **options: Any) -> Any:
        """Run a method of the filesystem that moves `size` bytes.

        FileNotFoundError and FileExistsError pass through as answers; other errors become a `StoreError`.
        """
        if self._down is not None and time.monotonic() < self._down_until:
            raise self._down
        if getattr(self.files, "async_impl", False):
            options["timeout"] = self._request_limit_s + size / SLOWEST_BYTES_PER_S
        try:
            return getattr(self.files, method)(*arguments, **options)
        except (FileNotFoundError, FileExistsError) as error:
            if _is_no_such_bucket(error):
                raise self._refused(error) from None
            raise
        except TimeoutError:
            limit_s = options.get("timeout", 0.0)
            raise self._gone(f"it gave no answer within {limit_s:.0f} s" if limit_s else "it timed out") from None
        except _foreign_errors() as error:
            raise (self._gone(_reason(error)) if _is_unreachable(error) else self._refused(error)) from None

    def _gone(self, reason: str) -> StoreError:
        error = StoreError(
            f"the store {self.url} does not answer: {reason}",
            hint="is it reachable from here? What was built is kept here and sent by the next build",
        )
        self._down, self._down_until = error, time.monotonic() + DOWN_S
        return error

    def _refused(self, error: Exception) -> StoreError:
        return StoreError(
            f"the store {self.url} refuses: {_reason(error)}", hint="do its bucket and these credentials exist?"
        )


def _foreign_errors() -> tuple[type[Exception], ...]:
    classes = (getattr(sys.modules.get(module), name, None) for module, name in FOREIGN_ERRORS)
    return (OSError, *(error for error in classes if error is not None))


def _is_unreachable(error: Exception) -> bool:
    names = {kind.__name__ for kind in type(error).__mro__}
    unreachable = {"HTTPClientError", "ClientConnectionError", "ConnectionError"}  # botocore, aiohttp, Python
    code = getattr(error.__cause__, "response", {}).get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    return bool(names & unreachable) or code >= 500


def _is_no_such_bucket(error: Exception) -> bool:
    return bool(getattr(error.__cause__, "response", {}).get("Error", {}).get("Code") == "NoSuchBucket")


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


CLAIMS = 3
"""How often a manifest is put again after an inconclusive answer (409: two concurrent puts)."""

UPLOAD_S = 6 * 3600.0
"""Age in seconds up to which an upload may belong to a build that still runs on another host."""


class RemoteStore:
    """The shared side of a store. Every method raises `StoreError` where the service refuses or does not answer."""

    def __init__(self, url: str, service: Service | None = None) -> None:
        self.url = url
        self._service = service or Service(url)
        self.root, self.is_local = self._service.root, self._service.is_local
        pipe = inspect.signature(self._service.files.pipe_file).parameters
        self._can_create = "mode" in pipe or any(p.kind is p.VAR_KEYWORD for p in pipe.values())

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
