"""Artifacts behind any fsspec URL, for workers on several hosts; a local folder stands in front of it as the cache.

Layout: `<url>/objects/ab/<key>/…`. The manifest is written last and read first: what has one is whole. Whoever fetches
checks every digest, so that a race or a torn upload is a miss at worst.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from engineworks.errors import StoreError

MANIFEST = "manifest.json"


class RemoteStore:
    """The shared side of a store. Every method raises `StoreError` where the service does not answer."""

    def __init__(self, url: str) -> None:
        from fsspec.core import url_to_fs

        self.url = url
        try:
            self._files, self._root = url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise StoreError(f"ENGINEWORKS_STORE={url}: {error}") from None

    @property
    def is_local(self) -> bool:
        """Whether the URL is a folder of this host (`file://…`), which needs no cache in front."""
        protocol = self._files.protocol
        return "file" in ((protocol,) if isinstance(protocol, str) else protocol)

    @property
    def root(self) -> str:
        return str(self._root)

    def has(self, key: str) -> bool:
        return bool(self._call("exists", self._place(key, MANIFEST)))

    def fetch(self, key: str, into: Path) -> bool:
        """Copy the artifact's files into the folder; False if there is no such artifact."""
        if not self.has(key):
            return False
        place = self._place(key)
        for name in self._call("find", place):
            target = into / name.removeprefix(place).lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            self._call("get_file", name, str(target))
        return (into / MANIFEST).is_file()

    def publish(self, key: str, folder: Path) -> None:
        """Copy a published artifact there, unless another host was first; the manifest goes last."""
        if self.has(key):
            return
        names = sorted(f.relative_to(folder).as_posix() for f in folder.rglob("*") if f.is_file())
        for name in sorted(names, key=lambda n: n == MANIFEST):
            target = self._place(key, name)
            self._call("makedirs", target.rpartition("/")[0], exist_ok=True)
            self._call("put_file", str(folder / name), target)

    def remove(self, key: str) -> None:
        """Take the artifact away; its manifest first, so that nobody finds a half."""
        if self.has(key):
            self._call("rm_file", self._place(key, MANIFEST))
            self._call("rm", self._place(key), recursive=True)

    def _place(self, key: str, *names: str) -> str:
        return "/".join((self._root.rstrip("/"), "objects", key[:2], key, *names))

    def _call(self, method: str, *arguments: Any, **options: Any) -> Any:
        try:
            return getattr(self._files, method)(*arguments, **options)
        except OSError as error:
            raise StoreError(
                f"the store {self.url} does not answer: {error}", hint="is it reachable from here?"
            ) from None
