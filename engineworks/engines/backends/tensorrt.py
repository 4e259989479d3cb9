"""TensorRT 10 and 11: builds on the GPU that the engine is for, because it times its kernels there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from engineworks.engines.backends import _trt
from engineworks.engines.backends._trt_config import SHARED, SMOKE, TENSORRT_ONLY
from engineworks.engines.backends._trt_host import why_not_run_here
from engineworks.engines.backends.base import (
    BuildMemory,
    BuildReport,
    BuildRequest,
    Option,
    Serving,
    Traits,
    TritonBackend,
)
from engineworks.engines.capabilities import CAPABILITIES, why_not_target
from engineworks.host.gpu import first_gpu
from engineworks.host.nvml import GpuWatch
from engineworks.tensors import TensorSpec

if TYPE_CHECKING:
    from engineworks.engines.backends._cuda import DeviceMemory
    from engineworks.engines.backends._trt_session import TrtSession

TITLE = CAPABILITIES["tensorrt"].title
DISTRIBUTIONS = ("tensorrt", "tensorrt-cu13", "tensorrt-cu12")
NEEDS_GPU_TO_BUILD = True
OPTIONS: Mapping[str, Option] = {**SHARED, **TENSORRT_ONLY}
IMPORTS = ("tensorrt", "onnx")

TRAITS = Traits(
    build_memory=BuildMemory(1500.0, 3.0),
    triton=TritonBackend("tensorrt", own_profiles=True),
    smoke_options=SMOKE,
    own_process=True,
)
"""The memory was never measured: the libraries are larger than TensorRT-RTX's, and the builder works alike. The vendor
keeps the first logger that a process gives it, and the builds' logger is slow: hence a process of its own."""

VENDOR = _trt.Vendor("tensorrt", TITLE, "tensorrt", DISTRIBUTIONS, OPTIONS, rtx=False)


def versions() -> Mapping[str, str]:
    """The installed distribution and its version; empty where there is none."""
    return VENDOR.versions()


def hardware() -> Mapping[str, str]:
    """The GPU, its driver and CUDA; empty on a host without a GPU."""
    gpu = first_gpu()
    return gpu.to_json() if gpu else {}


def why_not_build(compute_capabilities: Sequence[str]) -> str | None:
    """None if TensorRT is installed and the GPU here is the one that the engine is for."""
    installed = next(iter(versions().values()), None)
    if installed is None:
        return "TensorRT is not installed; pip install tensorrt"
    wrong = why_not_target("tensorrt", installed, compute_capabilities)
    if wrong is not None:
        return wrong
    gpu = first_gpu()
    wanted = compute_capabilities[0]
    if gpu is None:
        return f"TensorRT builds only on a GPU of compute capability {wanted}, and there is none here"
    if gpu.compute_capability != wanted:
        return (
            f"TensorRT builds only for the GPU that it runs on: the {gpu.name} here has compute capability "
            f"{gpu.compute_capability}, the target {wanted}"
        )
    return None


def build(request: BuildRequest, log: Callable[[str], None]) -> BuildReport:
    """Write an engine for the GPU of this host. Raises `BuildError`, `TargetError`."""
    return _trt.build(VENDOR, request, log)


def why_not_run(compute_capabilities: Sequence[str]) -> str | None:
    """None if the GPU of this host runs engines of such a target, otherwise the reason."""
    return why_not_run_here(VENDOR, compute_capabilities)


def load(
    engine: Path,
    options: Mapping[str, object],
    *,
    serving: Serving = Serving(),  # noqa: B008 - frozen
    cache: Path | None = None,
    known: Sequence[TensorSpec] = (),
) -> TrtSession:
    """Load an engine for the first visible GPU. Raises `RunError`, `TargetError` for an option that there is not."""
    from engineworks.engines.backends._trt_load import load as load_engine

    return load_engine(VENDOR, engine, options, serving, cache, known)


def memory_meter() -> DeviceMemory:
    """The memory of the GPU. Raises `RunError` where it does not answer."""
    from engineworks.engines.backends import _cuda

    return _cuda.DeviceMemory()


def device_watch() -> GpuWatch:
    return GpuWatch()
