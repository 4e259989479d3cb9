"""An engine's bytes → a session, over either vendor module."""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engineworks.backends._cuda import DeviceMemoryError, memory_mib
from engineworks.backends._trt_dialect import Dialect, PlainDialect, RtxDialect
from engineworks.backends._trt_log import Logger, logger_of
from engineworks.backends._trt_session import TrtSession
from engineworks.backends.base import Serving, check_options
from engineworks.errors import RunError
from engineworks.tensors import TensorSpec

if TYPE_CHECKING:
    from engineworks.backends._trt import Vendor


def load(
    vendor: Vendor,
    engine: Path,
    options: Mapping[str, object],
    serving: Serving,
    cache: Path | None,
    known: Sequence[TensorSpec],
) -> TrtSession:
    """Deserialize the engine and make one execution context. Raises `RunError`, `TargetError` for an option that there
    is not."""
    check_options(vendor.title, options, vendor.options)
    trt = vendor.load()
    title = f"{vendor.title} {trt.__version__}"
    memory_mib()  # makes the CUDA context: says here, and not inside the vendor's library, that there is no GPU
    with logger_of(trt).sending(_quiet) as logger, _mapped(engine) as data:
        runtime = trt.Runtime(logger.vendor)
        if vendor.rtx:
            _check_validity(trt, title, runtime, engine, data)
        loaded = runtime.deserialize_cuda_engine(data)
        if loaded is None:
            raise _failure(title, engine, logger)
        dialect: Dialect = RtxDialect(trt, loaded, serving, cache) if vendor.rtx else PlainDialect(loaded, serving)
        return TrtSession(trt, loaded, dialect, logger, graphs=serving.cuda_graphs, known=known)


def _check_validity(trt: Any, title: str, runtime: Any, engine: Path, data: Any) -> None:
    """Ask TensorRT-RTX itself whether the engine is for this version and GPU. Raises `RunError`."""
    if not hasattr(runtime, "get_engine_validity"):  # came with 1.3
        return
    validity, diagnostics = runtime.get_engine_validity(data)
    if validity != trt.EngineValidity.INVALID:
        return
    found = [
        name.lower().replace("_", " ")
        for name, flag in trt.EngineInvalidityDiagnostics.__members__.items()
        if int(flag) and int(diagnostics) & int(flag)
    ]
    raise RunError(
        f"{engine.name}: {title} can not run this engine here: {', '.join(found) or 'it gave no reason'}",
        hint="build it again with this version, for this GPU",
    )


def _failure(title: str, engine: Path, logger: Logger) -> RunError:
    if logger.out_of_memory():
        free, total = memory_mib()
        size = engine.stat().st_size / 2**20
        return DeviceMemoryError(
            f"the GPU has no room for this engine of {size:.0f} MiB: {free:.0f} of {total:.0f} MiB are free",
            hint="free the GPU, or use a smaller one of its profiles",
        )
    return RunError(
        f"{engine.name}: {title} can not load this engine: {logger.reason()}",
        hint="an engine fits the version and the GPU type that it was built for",
        log=logger.text(),
    )


@contextmanager
def _mapped(file: Path) -> Iterator[Any]:
    """The file's bytes without reading them into memory."""
    try:
        with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data:
            yield data
    except (OSError, ValueError) as error:
        raise RunError(f"{file}: can not be read: {error}") from None


def _quiet(line: str) -> None:
    """Only the vendor's errors matter here; the logger keeps them."""
