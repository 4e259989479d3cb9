"""Python's garbage collector, for a process with many permanent objects and with threads that parse.

Python 3.11 makes syntax trees with one recursion count for all threads (python/cpython#106905). `ast.parse`,
`inspect.signature`, pydantic and headers of NumPy files do so. Only the collector interrupts that work: freeing an
object may run another thread. If that thread parses too, both counts are wrong: SystemError, "AST constructor recursion
depth mismatch". From Python 3.12 on, the collector runs only between two instructions.
"""

from __future__ import annotations

import gc
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

SELDOM = 20_000
"""New objects that trigger a collection (some MiB); Python's default is 700."""

POLL_S = 0.2
FULL_EVERY = 10
"""One in this many collections scans all objects, as in Python's default."""

COLLECTOR = "collector"
"""Name of the thread of `collect_apart`. It holds nothing that a fork needs."""

_lock = threading.Lock()
_apart: threading.Thread | None = None
_paused = 0


def collect_apart() -> None:
    """Collect this process's garbage in a separate thread, which parses nothing, so that no thread is interrupted while
    it parses. Call it before threads work; a second call does nothing. Not needed after Python 3.11."""
    global _apart
    with _lock:
        if _apart is not None or sys.version_info >= (3, 12):
            return
        gc.disable()
        _apart = threading.Thread(target=_collect, name=COLLECTOR, daemon=True)
        _apart.start()


def _collect() -> None:
    done = 0
    while True:
        time.sleep(POLL_S)
        if not _paused and gc.get_count()[0] > max(SELDOM, gc.get_threshold()[0]):
            done += 1
            gc.collect(2 if done % FULL_EVERY == 0 else 1)
            if done == FULL_EVERY:
                gc.freeze()  # what is left by now are modules: a night's other full collections pass over them


def _in_forked_child() -> None:
    global _apart
    if _apart is not None:  # a fork copies no other thread
        _apart = None
        gc.enable()


os.register_at_fork(after_in_child=_in_forked_child)


@contextmanager
def not_collected() -> Iterator[None]:
    """Do not collect while modules are imported: that takes a fifth less time, because their million objects stay."""
    global _paused
    gc.disable()
    _paused += 1
    try:
        yield
    finally:
        _paused -= 1
        gc.freeze()
        if _apart is None:
            gc.enable()


@contextmanager
def collected_seldom() -> Iterator[None]:
    """Collect rarely, for imports of MLflow and lookups of hundreds of recipes. Prefect and MLflow have a million
    objects; by default the collector scans them every few seconds, 0.2 s each time."""
    before = gc.get_threshold()
    gc.set_threshold(SELDOM, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)
