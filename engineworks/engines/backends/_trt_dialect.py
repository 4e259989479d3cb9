"""All run-time differences between TensorRT-RTX and TensorRT.

- RTX compiles kernels when it creates a context and when a shape first runs, in the background if so configured. It
  keeps them in a runtime cache and replays CUDA graphs itself (`IRuntimeConfig`, `IRuntimeCache`: TensorRT-RTX API
  reference, 1.1 and later).
- TensorRT 10 and 11 compile everything at build time. Engineworks captures the CUDA graphs.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engineworks.engines.backends.base import Serving
from engineworks.host.atomic_write import write_atomically

RUNTIME_CACHE_FILE = "runtime.cache"


def scratch_bytes(engine: Any) -> int:
    """Return the bytes that a context of the engine needs for its layers. TensorRT 10.0 has only the older name."""
    older = getattr(engine, "device_memory_size", 0)
    return int(getattr(engine, "device_memory_size_v2", older))


class Dialect:
    """Creates execution contexts and describes them: TensorRT 10 and 11."""

    captures = True
    """Whether Engineworks captures CUDA graphs; otherwise a context for graphs replays by itself."""

    def __init__(self, engine: Any, serving: Serving) -> None:
        self._engine, self._serving = engine, serving

    def context(self, *, graphs: bool, trial: bool) -> Any:
        """Return a new execution context; None if memory is missing (the vendor's log has the reason). trial: a context
        to test whether a run can be captured, dropped afterwards."""
        del graphs, trial
        return self._engine.create_execution_context()

    def notes(self) -> tuple[str, ...]:
        if self._serving.kernels == "lazy":
            return ()
        return (f"kernels: {self._serving.kernels} is TensorRT-RTX's; TensorRT's were all compiled at build time",)

    def facts(self) -> Mapping[str, object]:
        return {"kernels": "built in"}

    def save(self) -> None:
        """Save data that makes the next load faster: nothing, as TensorRT has no runtime cache."""


class RtxDialect(Dialect):
    """TensorRT-RTX. One runtime cache serves all contexts of the session."""

    captures = False

    def __init__(self, trt: Any, engine: Any, serving: Serving, cache: Path | None) -> None:
        super().__init__(engine, serving)
        self._trt = trt
        self._file = cache / RUNTIME_CACHE_FILE if cache else None
        self._config = engine.create_runtime_config()
        self._cache, self._use, self._before = None, "none", b""
        if self._file is not None:
            self._cache = self._config.create_runtime_cache()
            self._use = self._fill(self._file)
            self._config.set_runtime_cache(self._cache)

    def context(self, *, graphs: bool, trial: bool) -> Any:
        """A trial context requests no specialized kernels. Dropping it loses those in progress, and with a runtime
        cache no later context requests them. (1.6.1: fp8 engines stayed four to seven times slower.)"""
        kernels = self._trt.DynamicShapesKernelSpecializationStrategy
        wanted = kernels.NONE if trial else getattr(kernels, self._serving.kernels.upper())
        self._config.dynamic_shapes_kernel_specialization_strategy = wanted
        strategies = self._trt.CudaGraphStrategy
        self._config.cuda_graph_strategy = strategies.WHOLE_GRAPH_CAPTURE if graphs else strategies.DISABLED
        return self._engine.create_execution_context(self._config)

    def notes(self) -> tuple[str, ...]:
        if self._use == "refused":
            return ("the runtime cache was made by another version, GPU or driver: not used, and made again",)
        return ()

    def facts(self) -> Mapping[str, object]:
        return {"kernels": self._serving.kernels, "runtime_cache": self._use, "runtime_cache_bytes": len(self._before)}

    def save(self) -> None:
        if self._file is None or self._cache is None:
            return
        made = bytes(self._cache.serialize())
        if made and made != self._before:
            write_atomically(self._file, made)

    def _fill(self, file: Path) -> str:
        """Read the cache of earlier sessions. Returns the outcome: new, reused or refused."""
        if not file.is_file():
            return "new"
        self._before = file.read_bytes()
        assert self._cache is not None
        return "reused" if self._cache.deserialize(self._before) else "refused"


def dialect_of(trt: Any, engine: Any, serving: Serving, cache: Path | None, *, rtx: bool) -> Dialect:
    return RtxDialect(trt, engine, serving, cache) if rtx else Dialect(engine, serving)
