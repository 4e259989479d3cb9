"""What this host refuses: a full disk, which libraries report in their own ways, and files that cannot be opened."""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from engineworks.errors import Interrupted, StoreError

LEAST_FREE_BYTES = 1 << 20
"""Less than a first database of Prefect or MLflow needs."""

REFUSALS = frozenset({
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP, errno.EIO, errno.ESTALE, errno.EMFILE,
    errno.ENFILE,
})  # fmt: skip
"""Errors of the system that the user's files and host cause, not our code."""

FULL_MESSAGES = ("database or disk is full", "disk i/o error", "no space left on device", "disk quota exceeded")


@contextlib.contextmanager
def full_disk_named(folder: Path) -> Iterator[None]:
    """Let an error below be one sentence that names the folder if its disk is full."""
    try:
        yield
    except (Interrupted, StoreError):  # the latter names its own place
        raise
    except Exception as error:
        if not (_is_full(folder) or _says_full(error)):
            raise
        raise no_space(folder) from error


def no_space(folder: Path) -> StoreError:
    """Return the error for a full disk: the folder's, or that of temporary files."""
    temporary = Path(tempfile.gettempdir())
    if _is_full(temporary) and not _is_full(folder):
        return StoreError(f"{temporary}: no space is left on its disk", hint="free some space, or set TMPDIR")
    return StoreError(
        f"{folder}: no space is left on its disk",
        hint="free some space ('engineworks gc' may), or let ENGINEWORKS_ARTIFACTS name a folder on another disk",
    )


def refusal_of_host(error: BaseException, folder: Path) -> StoreError | None:
    """Return the error for what this host refused, None for a defect of ours. folder: that of all artifacts."""
    if _says_full(error):
        return no_space(folder)
    if isinstance(error, OSError) and error.errno in REFUSALS and error.filename is not None:
        return StoreError(
            f"{str(error.filename)[:200]}: {error.strerror}", hint="check its name, owner and permissions"
        )
    return None


def _is_full(folder: Path) -> bool:
    """Whether less is free than any build needs."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    space = os.statvfs(folder)
    return space.f_blocks > 0 and space.f_bavail * space.f_frsize < LEAST_FREE_BYTES


def _says_full(error: BaseException) -> bool:
    """Return whether the error, or one behind it, reports a full disk."""
    pending, visited = [error], set[int]()
    while pending:
        inner = pending.pop()
        visited.add(id(inner))
        if isinstance(inner, OSError) and inner.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if any(text in f"{inner} {getattr(inner, 'log', '')}".lower() for text in FULL_MESSAGES):
            return True
        pending += [e for e in (inner.__cause__, inner.__context__) if e is not None and id(e) not in visited]
    return False
