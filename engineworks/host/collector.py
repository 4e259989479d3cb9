"""Python's garbage collector, for a process that holds much which is no garbage, and whose threads parse.

Python 3.11 makes syntax trees (`ast.parse`; `inspect.signature`, pydantic and the headers of NumPy files call it)
with one count of recursion for all threads (python/cpython#106905). Only the collector interrupts that work: what
it frees may let another thread run, and where that one parses too both counts are wrong: SystemError, "AST constructor
recursion depth mismatch". From Python 3.12 on the collector runs between two instructions only.
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
"""Objects more than before at which the collector looks, where Python's own limit is 700: some MiB."""

POLL_S = 0.2
WHOLE_EVERY = 10
"""Of so many collections one looks at all objects, as Python has it."""

_lock = threading.Lock()
_apart: threading.Thread | None = None
_paused = 0


def collect_apart() -> None:
    """From now on this process collects garbage in a thread of its own, which parses nothing: no thread is interrupted
    in the middle of parsing. Call it before threads work; a second call does nothing. Not needed after Python 3.11."""
    global _apart
    with _lock:
        if _apart is not None or sys.version_info >= (3, 12):
            return
        gc.disable()
        _apart = threading.Thread(target=_collect, name="collector", daemon=True)
        _apart.start()


def _collect() -> None:
    done = 0
    while True:
        time.sleep(POLL_S)
        if not _paused and gc.get_count()[0] > max(SELDOM, gc.get_threshold()[0]):
            done += 1
            gc.collect(2 if done % WHOLE_EVERY == 0 else 1)


def _in_forked_child() -> None:
    global _apart
    if _apart is not None:  # a fork copies no other thread
        _apart = None
        gc.enable()


os.register_at_fork(after_in_child=_in_forked_child)


@contextmanager
def not_collected() -> Iterator[None]:
    """While modules are imported: they make a million objects that stay, and looking through them for garbage costs a
    fifth of the time."""
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
    """While MLflow is imported and hundreds of recipes are looked up: Prefect and MLflow are a million objects, and at
    Python's own pace the collector goes through them every few seconds, 0.2 s each time."""
    before = gc.get_threshold()
    gc.set_threshold(SELDOM, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)
