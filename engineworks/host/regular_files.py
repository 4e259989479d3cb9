"""Opens files that users and recipes name: regular files only, so that no pipe or device blocks or never ends."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from io import BufferedReader
from pathlib import Path

KINDS = (
    (stat.S_ISDIR, "is a folder"),
    (stat.S_ISFIFO, "is a named pipe"),
    (stat.S_ISCHR, "is a device"),
    (stat.S_ISBLK, "is a device"),
    (stat.S_ISSOCK, "is a socket"),
)


def open_regular(path: Path) -> BufferedReader:
    """Open a regular file to read its bytes, symbolic links followed. Raises `OSError` for anything else, at once."""
    try:
        check_regular(path, path.stat().st_mode)  # before it is opened: opening a device may act on it
        file = open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")  # noqa: PTH123
    except ValueError:  # a NUL or a lone surrogate in its name
        raise OSError(errno.EINVAL, "no file can have this name", str(path)) from None
    try:
        check_regular(path, os.fstat(file.fileno()).st_mode)
    except OSError:
        file.close()
        raise
    return file


def read_regular(path: Path, most_bytes: int) -> bytes:
    """Return a regular file's bytes. Raises `OSError` for anything else, and for more than `most_bytes`, which are not
    read: a file below /proc has no end that its size tells."""
    with open_regular(path) as file:
        data = file.read(most_bytes + 1)
    if len(data) > most_bytes:
        raise OSError(errno.EFBIG, f"is larger than {most_bytes >> 20} MiB", str(path))
    return data


def resolved(path: Path) -> Path:
    """Return the absolute path, symbolic links followed; the file need not exist. Raises `OSError` for a loop of links
    or an impossible name."""
    try:
        path = path.resolve()
        with contextlib.suppress(FileNotFoundError, NotADirectoryError, PermissionError):
            if stat.S_ISLNK(path.lstat().st_mode):  # also a name that is too long, or none at all
                raise RuntimeError  # what Python before 3.13 raises for a loop
        return path
    except RuntimeError:
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path)) from None
    except ValueError:
        raise OSError(errno.EINVAL, "no file can have this name", str(path)) from None


def check_regular(path: Path, mode: int) -> None:
    """Raises `OSError` unless it is the mode (stat(2)) of a regular file."""
    if not stat.S_ISREG(mode):
        number = errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL
        raise OSError(number, f"{kind_of(mode)}, not a regular file", str(path))


def kind_of(mode: int) -> str:
    """Say what has this mode (stat(2)) and is no regular file: 'is a folder'."""
    return next((name for test, name in KINDS if test(mode)), "is no file")
