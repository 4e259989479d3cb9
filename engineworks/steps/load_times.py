"""Time from an engine's file to its first outputs, with and without its device's cache."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from engineworks.engines.backends.base import Session
from engineworks.host.lazy import Array

Load = Callable[[Path | None], Session]
"""The cache's folder, or None for a load without it → a session."""


def measure_loads(load: Load, feeds: dict[str, Array], cache: Path) -> dict[str, dict[str, float]]:
    """Measure `without_cache` and `with_cache`, each load_ms and first_run_ms (the first run at this shape, with
    compilation), in ms.

    feeds: one run's inputs by name, with the shapes and dtypes of the engine's inputs. Libraries are loaded already:
    both are the costs of a process's second engine.
    """
    without = _timed(load, feeds, None)
    _timed(load, feeds, cache)  # fills the cache as a session of this shape alone would
    return {"without_cache": without, "with_cache": _timed(load, feeds, cache)}


def _timed(load: Load, feeds: dict[str, Array], cache: Path | None) -> dict[str, float]:
    start = time.perf_counter()
    session = load(cache)
    loaded = time.perf_counter()
    try:
        session.run(feeds)
        ran = time.perf_counter()
    finally:
        session.close()
    return {"load_ms": 1000 * (loaded - start), "first_run_ms": 1000 * (ran - loaded)}
