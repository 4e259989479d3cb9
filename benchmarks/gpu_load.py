"""Loads an engine in a process of its own and prints the milliseconds, as JSON; `gpu.py` calls it with and without a
runtime cache.

    python benchmarks/gpu_load.py ENGINE_FOLDER TARGET_JSON FEEDS_NPZ KERNELS [CACHE_FOLDER]
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from engineworks.engines.backends.base import Serving
from engineworks.engines.engine_session import load_engine, runner_of
from engineworks.recipe.npz import read_arrays


def main(folder: str, target_json: str, feeds_file: str, kernels: str, cache: str | None = None) -> None:
    """load_ms: until there is a session; the CUDA context is made before. first_run_ms: with copies."""
    target, feeds = json.loads(target_json), read_arrays(Path(feeds_file))
    runner_of(target).memory_meter().reset()
    start = time.perf_counter()
    session = load_engine(
        Path(folder),
        target,
        serving=Serving(kernels="eager" if kernels == "eager" else "lazy"),
        cache=Path(cache) if cache else None,
    )
    loaded = time.perf_counter()
    session.run(feeds)
    ran = time.perf_counter()
    facts = dict(session.facts)
    session.close()
    values = {"load_ms": 1000 * (loaded - start), "first_run_ms": 1000 * (ran - loaded), "facts": facts}
    print(json.dumps(values, default=str))


if __name__ == "__main__":
    main(*sys.argv[1:])
