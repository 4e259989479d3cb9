"""The files of an engine and their digests, checked before deserialization, which runs the builder's code."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from engineworks.errors import TrustError
from engineworks.host.file_digests import digest_file
from engineworks.store.artifact import MANIFEST

PASSPORT_FILE = "passport.json"
PASSPORT_VERSION = 1
PASSPORT_STEP = "passport"
SIDECAR_FILE = "engine.json"
STATEMENTS_FILE = "statements.json"
"""The statements of the engine's releases, next to a passport."""

LOG_FILE = "log.txt"
"""The output of a step, in its own artifact."""

NOT_SHIPPED = (MANIFEST, LOG_FILE)
"""Files of a build's artifact that are not part of the engine."""


def check_files(
    folder: Path, digests: Mapping[str, str], *, against: str = "what was recorded when it was built"
) -> None:
    """Raises `TrustError` unless every file has its sha256 (64 hex digits). digests: by path relative to the folder."""
    for name, digest in digests.items():
        file = inside(folder, name)
        try:
            actual = digest_file(file)
        except OSError as error:
            raise TrustError(f"{file}: cannot be read: {error.strerror}", hint="fetch the engine again") from None
        if actual != digest:
            raise altered(file, actual, digest, against)


def inside(folder: Path, name: str) -> Path:
    """Return the path of a file of the folder. Raises `TrustError` for one that leaves it, by a symlink too."""
    try:
        stays = "\0" not in name and (folder / name).resolve().is_relative_to(folder.resolve())
    except (RuntimeError, OSError):  # links that lead in a circle
        stays = False
    if not stays:
        raise TrustError(f"{folder}: {name[:80]!r} leaves the folder", hint="do not use it; fetch it again")
    return folder / name


def altered(file: Path, actual: str, digest: str, against: str) -> TrustError:
    """Return the error for a file of another sha256 than `against` says."""
    return TrustError(
        f"{file}: was altered: its sha256 is {actual[:12]}…, {against} says {digest[:12]}…",
        hint="do not load it; fetch it again from where it was built",
    )


def refuse_strangers(folder: Path, known: Collection[str]) -> None:
    """Raises `TrustError` for a file in the folder that is neither known nor one of Engineworks' own."""
    own = {*known, SIDECAR_FILE, PASSPORT_FILE, STATEMENTS_FILE, *NOT_SHIPPED}
    strange = sorted({p.relative_to(folder).as_posix() for p in folder.rglob("*") if not p.is_dir()} - own)
    if strange:
        raise TrustError(
            f"{folder / strange[0]}: is no file of the engine", hint="it was added later: do not use it, or remove it"
        )
