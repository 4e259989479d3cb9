"""An engine's bytes → a session, for either vendor module."""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engineworks.engines.backends._cuda import DeviceMemoryError, memory_mib
from engineworks.engines.backends._trt_dialect import dialect_of
from engineworks.engines.backends._trt_host import why_not_fit
from engineworks.engines.backends._trt_log import RunErrors
from engineworks.engines.backends._trt_session import TrtSession
from engineworks.engines.backends._trt_tf32 import follow_switch, keep_switch
from engineworks.engines.backends.base import Serving, check_options
from engineworks.engines.backends.plan_header import HEADER_BYTES
from engineworks.errors import RunError
from engineworks.host.gpu import first_gpu
from engineworks.tensors import TensorSpec

if TYPE_CHECKING:
    from engineworks.engines.backends._trt import Vendor


def load(
    vendor: Vendor,
    engine: Path,
    options: Mapping[str, object],
    serving: Serving,
    cache: Path | None,
    known: Sequence[TensorSpec],
) -> TrtSession:
    """Deserialize the engine and create one execution context. Raises `RunError`, and `TargetError` for an unknown
    option."""
    check_options(vendor.title, options, vendor.options)
    trt = vendor.load()
    memory_mib()  # creates the CUDA context: a missing GPU fails here, not inside the vendor's library
    errors = RunErrors(trt)
    with opened(vendor, trt, engine, errors) as loaded:
        dialect = dialect_of(trt, loaded[1], serving, cache, rtx=vendor.rtx)
        start = partial(TrtSession, trt, loaded, dialect, errors, graphs=serving.cuda_graphs, known=known)
        try:
            session = start()
        except RunError as error:
            if not follow_switch(errors.text()):
                raise error from None
            session = start()
    if vendor.rtx:
        try:
            keep_switch()
        except RunError:
            session.close()
            raise
    return session


@contextmanager
def opened(vendor: Vendor, trt: Any, engine: Path, errors: RunErrors) -> Iterator[tuple[Any, Any]]:
    """Yield the vendor's runtime, which must outlive the rest, and the deserialized engine. Raises `RunError`."""
    with _mapped(engine) as data:
        _refuse_misfit(vendor, engine, data)
        runtime = trt.Runtime(errors.logger)
        runtime.error_recorder = errors.recorder
        loaded = runtime.deserialize_cuda_engine(data)
        if loaded is None:
            raise _failure(f"{vendor.title} {trt.__version__}", engine, errors, _diagnosis(trt, runtime, data))
        yield runtime, loaded


def _refuse_misfit(vendor: Vendor, engine: Path, data: Any) -> None:
    """Check the header before loading, which runs the engine's code. Raises `RunError` for another version or other
    GPUs."""
    gpu = first_gpu()
    why = why_not_fit(vendor, bytes(data[:HEADER_BYTES]), {}, gpu) if gpu is not None else None
    if why is not None:
        raise RunError(f"{engine}: {why}")


def _diagnosis(trt: Any, runtime: Any, data: Any) -> str:
    """Return TensorRT-RTX's own diagnosis of an engine, '' before 1.3, which has none.

    Call it only after a failure: it also objects to engines that run, above all to portable ones on Hopper.
    """
    if not hasattr(runtime, "get_engine_validity"):
        return ""
    _, reasons = runtime.get_engine_validity(data)
    flags = trt.EngineInvalidityDiagnostics.__members__.items()
    return ", ".join(n.lower().replace("_", " ") for n, flag in flags if int(flag) and int(reasons) & int(flag))


def _failure(title: str, engine: Path, errors: RunErrors, diagnosis: str) -> RunError:
    if errors.out_of_memory():
        free, total = memory_mib()
        size = engine.stat().st_size / 2**20
        return DeviceMemoryError(
            f"the GPU has no room for this engine of {size:.0f} MiB: {free:.0f} of {total:.0f} MiB are free",
            hint="free the GPU, or use a smaller one of its profiles",
        )
    why = f"{diagnosis}: {errors.reason()}" if diagnosis else errors.reason()
    return RunError(
        f"{engine}: {title} cannot load this engine: {why}",
        hint="an engine fits the version and the GPU type that it was built for",
        log=errors.text(),
    )


@contextmanager
def _mapped(file: Path) -> Iterator[Any]:
    """Map the file's bytes without reading them into memory."""
    try:
        with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data:
            yield data
    except (OSError, ValueError) as error:
        raise RunError(f"{file}: cannot be read: {error}") from None
