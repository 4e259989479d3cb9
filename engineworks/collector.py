"""Python's garbage collector, for a process that holds much which is no garbage."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

SELDOM = 20_000
"""Objects more than before at which the collector looks, where Python's own limit is 700: some MiB."""


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
