"""What C++ libraries write on standard error, kept: a reason is often nowhere else."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager

STDERR = 2


@contextmanager
def kept_stderr() -> Iterator[Callable[[], str]]:
    """Within, descriptor 2 leads to a file; the value reads what is there so far. Afterwards all of it is handed on to
    where it would have gone. Other threads' lines are caught too."""
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
