"""Captures what C++ libraries write on standard error, often the only place of a reason."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager

STDERR = 2


@contextmanager
def kept_stderr() -> Iterator[Callable[[], str]]:
    """Redirect descriptor 2 to a file within the block; the value reads the file so far. Afterwards the content goes to
    the original descriptor. This also captures lines of other threads."""
    sys.stderr.flush()
    before = os.dup(STDERR)
    with tempfile.TemporaryFile() as file:

        def read() -> str:
            return os.pread(file.fileno(), os.fstat(file.fileno()).st_size, 0).decode("utf-8", "replace")

        os.dup2(file.fileno(), STDERR)
        try:
            yield read
        finally:
            sys.stderr.flush()
            os.dup2(before, STDERR)
            os.close(before)
            text = read()
            if text:
                os.write(STDERR, text.encode("utf-8", "replace"))
