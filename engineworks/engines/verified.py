"""Private copies of an engine's files: the bytes that were hashed are the bytes that are loaded.

Every file is read once, hashed while it is copied. A single file goes to sealed memory (memfd_create(2), fcntl(2)
F_ADD_SEALS), a large one to an unlinked temporary file; both are loaded as /proc/self/fd/N, which no rename reaches.
Several files, such as ONNX with external data, find each other by name: they go to a private folder (mode 700), which
is deleted after loading.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import IO

from engineworks.engines.engine_files import NOT_SHIPPED, SIDECAR_FILE, altered, inside
from engineworks.engines.passport import Passport
from engineworks.engines.sidecar import Sidecar
from engineworks.errors import RunError, TrustError
from engineworks.host.regular_files import open_regular
from engineworks.store.artifact import MANIFEST, read_manifest
from engineworks.typed_json import parse

SEALED_BYTES = 256 * 2**20
"""Size up to which a copy is held in memory while it is loaded."""

CHUNK_BYTES = 2**20

RECORDED = "what was recorded when it was built"


@dataclass(frozen=True)
class VerifiedEngine:
    """An engine to load. path: of the private copy of its main file. source: the file that was copied, for messages.
    sidecar: the verified contents of `engine.json`."""

    path: Path
    source: Path
    sidecar: Sidecar


@contextlib.contextmanager
def verified_engine(folder: Path, passport: Passport | None = None) -> Iterator[VerifiedEngine]:
    """Yield a private copy of the engine in the folder. passport: says what its files are; without one, the store's
    manifest or the sidecar does.

    Raises `TrustError` for a missing or altered file, `RunError` where there is no space for the copy.
    """
    digests, against = (passport.files, "its passport") if passport else (_stored_digests(folder), RECORDED)
    sidecar = _sidecar(inside(folder, SIDECAR_FILE), (digests or {}).get(SIDECAR_FILE), against)
    main, digests = sidecar.engine, digests or sidecar.digests
    own = (SIDECAR_FILE, *NOT_SHIPPED)
    files = {name: (inside(folder, name), digest) for name, digest in digests.items() if name not in own}
    with private_copy(files, main, against) as path:
        yield VerifiedEngine(path, folder / main, sidecar)


@contextlib.contextmanager
def private_copy(files: Mapping[str, tuple[Path, str]], main: str, against: str) -> Iterator[Path]:
    """Yield the path of `main` among private copies of the files, valid until the end of the block.

    files: name next to each other → the file and its sha256. against: who says the sha256, for messages. Raises
    `TrustError`, or `RunError` where there is no space for the copies.
    """
    if main not in files:
        raise TrustError(f"'{main}', the engine's main file, is not among its files", hint="fetch the engine again")
    with contextlib.ExitStack() as stack:
        if len(files) == 1:
            source, digest = files[main]
            yield Path(f"/proc/self/fd/{stack.enter_context(_sealed_copy(source, digest, against)).fileno()}")
            return
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="engineworks-engine-")))
        for name, (source, digest) in files.items():
            place = inside(folder, name)
            place.parent.mkdir(parents=True, exist_ok=True)
            with place.open("xb", buffering=0) as target:
                _copy(source, digest, target, against)
        yield folder / main


@contextlib.contextmanager
def named(path: Path, source: Path) -> Iterator[None]:
    """Let errors name the file that was copied in place of its private copy."""
    try:
        yield
    except RunError as error:
        error.message = error.message.replace(str(path), str(source))
        error.log = error.log.replace(str(path), str(source))
        raise


def _sealed_copy(source: Path, digest: str, against: str) -> IO[bytes]:
    """Return an open copy that has no file name. A copy in memory is sealed: no process can write to it again."""
    with contextlib.ExitStack() as undo:
        try:
            small = source.stat().st_size <= SEALED_BYTES
        except OSError as error:
            raise _unreadable(source, error) from None
        if small:
            copy: IO[bytes] = os.fdopen(os.memfd_create("engine", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING), "r+b", 0)
        else:
            copy = TemporaryFile(prefix="engineworks-engine-", buffering=0)
        undo.callback(copy.close)
        _copy(source, digest, copy, against)
        if small:
            seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
            fcntl.fcntl(copy.fileno(), fcntl.F_ADD_SEALS, seals)
        undo.pop_all()
        return copy


def _copy(source: Path, digest: str, target: IO[bytes], against: str) -> None:
    """Copy and hash at once. Raises `TrustError` where the sha256 is another."""
    actual = hashlib.sha256()
    for chunk in _chunks(source):
        actual.update(chunk)
        left = memoryview(chunk)
        try:
            while left:
                left = left[target.write(left) :]
        except OSError as error:
            why = f"{source}: cannot be copied to be verified: {error.strerror}"
            raise RunError(why, hint="let TMPDIR name a folder with more space") from None
    if actual.hexdigest() != digest:
        raise altered(source, actual.hexdigest(), digest, against)


def _chunks(source: Path) -> Iterator[bytes]:
    try:
        with open_regular(source) as file:
            while chunk := file.read(CHUNK_BYTES):
                yield chunk
    except OSError as error:
        raise _unreadable(source, error) from None


def _stored_digests(folder: Path) -> Mapping[str, str] | None:
    """Return sha256 by file, as the store's manifest in the folder says; None without one. Raises `TrustError`."""
    if not os.path.lexists(folder / MANIFEST):
        if not os.path.lexists(folder / SIDECAR_FILE):
            raise TrustError(
                f"{folder}: holds no {SIDECAR_FILE}, so nothing says what its engine should be",
                hint="fetch the engine's whole folder again from where it was built",
            )
        return None
    artifact = read_manifest(folder)
    if artifact is None:
        raise TrustError(f"{folder / MANIFEST}: cannot be read", hint="build again")
    return {name: facts["sha256"] for name, facts in artifact.files.items()}


def _sidecar(path: Path, digest: str | None, against: str) -> Sidecar:
    """Return the sidecar, read once. digest: None where nothing else says what it should be."""
    data = b"".join(_chunks(path))
    actual = hashlib.sha256(data).hexdigest()
    if digest is not None and actual != digest:
        raise altered(path, actual, digest, against)
    return parse(Sidecar, data, str(path), error=TrustError, hint="fetch the engine again")


def _unreadable(source: Path, error: OSError) -> TrustError:
    return TrustError(f"{source}: cannot be read: {error.strerror}", hint="fetch the engine again")
