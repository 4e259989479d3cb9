"""What packages were made from: gc keeps it as long as the package exists.

<store>/packages/<digest>.json    one package: host, folder, digest of its manifest, keys of its engines' steps
"""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from pathlib import Path

from engineworks.errors import StoreError
from engineworks.fingerprint import digest_of
from engineworks.host.atomic_write import write_atomically
from engineworks.host.file_digests import digest_file
from engineworks.package.package import PACKAGE_FILE, PackagedEngine

FOLDER = "packages"


def note_package(root: Path, out: Path, engines: Sequence[PackagedEngine]) -> None:
    """Note in the store `root` what the package at `out` was made from. Raises `StoreError`."""
    place = {"host": platform.node(), "out": str(out.resolve())}
    keys = sorted({key for engine in engines for key in engine.passport.body["steps"].values()})
    path = root / FOLDER / f"{digest_of(place)[:16]}.json"
    try:
        value = {**place, "manifest": digest_file(out / PACKAGE_FILE), "keys": keys}
        write_atomically(path, json.dumps(value, indent=1).encode())
    except OSError as error:
        raise StoreError(f"the store {root} cannot be written: {error.strerror}") from None


def packaged_keys(root: Path) -> set[str]:
    """Return the keys of packages that exist, or may exist on another host; forget others. Raises `StoreError`."""
    keys: set[str] = set()
    for path in (root / FOLDER).glob("*.json"):
        try:
            value = json.loads(path.read_bytes())
            if value["host"] == platform.node() and _is_gone(Path(value["out"]), value["manifest"]):
                path.unlink()
                continue
            keys.update(map(str, value["keys"]))
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            message = f"{path} cannot be read: it names a package that may need artifacts of this store"
            raise StoreError(message) from None
    return keys


def _is_gone(out: Path, manifest: str) -> bool:
    """Whether the folder no longer holds this package."""
    try:
        return digest_file(out / PACKAGE_FILE) != manifest
    except (FileNotFoundError, NotADirectoryError):
        return True
