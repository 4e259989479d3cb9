"""A lock between processes: an flock, which the kernel drops when its holder dies, `kill -9` included."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

POLL_S = 0.02


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock file, created if missing and never written. Raises `OSError` where it cannot be created, or is a
    symbolic link, which another user may have put there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    try:
        while not _take(file):  # polled, so that Ctrl-C works
            time.sleep(POLL_S)
        yield
    finally:
        os.close(file)


def is_locked(path: Path) -> bool:
    """Whether another holder has the lock file now."""
    try:
        file = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        return not _take(file)
    finally:
        os.close(file)


def _take(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
