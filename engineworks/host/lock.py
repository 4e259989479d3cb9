"""A lock between processes: an flock, which the kernel drops when its holder dies, `kill -9` included."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import tempfile
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


def private_folder() -> Path:
    """Return a folder below the temporary one that only this user can write to, for locks of the whole host.

    Raises `OSError` where another user has made it, or a link in its place.
    """
    folder = Path(tempfile.gettempdir()) / f"engineworks-{os.getuid()}"
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise PermissionError(errno.EPERM, "is not a folder that only you can write to: delete it", str(folder))
    return folder


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
