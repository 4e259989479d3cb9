"""Leases: what running builds use, so that gc frees none of it.

    <root>/leases/<pid>.<random>.json    flocked by the build's process; the kernel drops the lock when that dies
    <root>/leases/.lock                  held by gc while it decides, and for a moment by a build that starts

A lease protects the keys it names, and whatever is published after it. A build that starts while gc decides waits for
the decision and then looks which of its results are still there.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import weakref
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from engineworks.errors import StoreError
from engineworks.host.lock import is_locked, locked
from engineworks.store.clock import Published, now

FOLDER = "leases"


class Lease:
    """A lease of this process. It ends with `end`, with this object, or with the process."""

    def __init__(self, root: Path, keys: Iterable[str]) -> None:
        path = root / FOLDER / f"{os.getpid()}.{secrets.token_hex(8)}.json"
        text = json.dumps({"since": now().to_json(), "keys": sorted(set(keys))})
        try:
            with deciding(root):
                file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
                try:
                    fcntl.flock(file, fcntl.LOCK_EX)
                    _write(file, text.encode())
                except OSError:
                    _end(file, path, os.getpid())
                    raise
        except OSError as error:
            raise StoreError(f"the store {root} cannot be written: {error.strerror}") from None
        self.end = weakref.finalize(self, _end, file, path, os.getpid())


@dataclass(frozen=True)
class Held:
    """A lease of a living process. since: when it began."""

    keys: frozenset[str]
    since: Published


@contextlib.contextmanager
def deciding(root: Path) -> Iterator[None]:
    """Hold the lock under which gc decides and leases begin. Raises `OSError` where the folder cannot be written."""
    with locked(root / FOLDER / ".lock"):
        yield


def held_leases(root: Path) -> list[Held]:
    """Return the leases of living processes; delete those of dead ones. Call it inside `deciding`."""
    held = []
    for path in (root / FOLDER).glob("*.json"):
        if not is_locked(path):
            path.unlink(missing_ok=True)
            continue
        try:
            value = json.loads(path.read_bytes())
        except FileNotFoundError:  # it ended just now
            continue
        held.append(Held(frozenset(value["keys"]), Published.from_json(value["since"])))
    return held


def _write(file: int, data: bytes) -> None:
    while data:
        data = data[os.write(file, data) :]


def _end(file: int, path: Path, pid: int) -> None:
    if os.getpid() == pid:  # a forked child shares the lock and must not end it
        with contextlib.suppress(OSError):
            path.unlink()
    with contextlib.suppress(OSError):
        os.close(file)
