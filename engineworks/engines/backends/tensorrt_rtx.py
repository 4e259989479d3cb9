"""TensorRT-RTX: builds ahead of time, on any machine, for the compute capabilities that the target names."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from engineworks.engines.backends import _trt
from engineworks.engines.backends._trt_config import SHARED, SMOKE
from engineworks.engines.backends._trt_host import why_not_run_here
from engineworks.engines.backends.base import BuildMemory, BuildReport, BuildRequest, Serving, Traits, TritonBackend
from engineworks.engines.capabilities import CAPABILITIES, why_not_target
from engineworks.host.gpu import first_gpu
from engineworks.host.nvml import GpuWatch
from engineworks.tensors import TensorSpec

if TYPE_CHECKING:
    from engineworks.engines.backends._cuda import DeviceMemory
    from engineworks.engines.backends._trt_session import TrtSession

TITLE = CAPABILITIES["tensorrt_rtx"].title
DISTRIBUTIONS = ("tensorrt-rtx",)
NEEDS_GPU_TO_BUILD = False
OPTIONS = SHARED
IMPORTS = ("tensorrt_rtx", "onnx")

TRAITS = Traits(
    build_memory=BuildMemory(400.0, 3.0),
    triton=TritonBackend("python"),
    smoke_options=SMOKE,
    own_process=True,
)
"""The memory was measured (results/build-memory-cpu.json). No backend of Triton reads these engines. As with
TensorRT, a process keeps its first logger."""

VENDOR = _trt.Vendor("tensorrt_rtx", TITLE, "tensorrt_rtx", DISTRIBUTIONS, OPTIONS, rtx=True)


def versions() -> Mapping[str, str]:
    """The installed distribution and its version; empty where there is none."""
    return VENDOR.versions()


def hardware() -> Mapping[str, str]:
    """The GPU, its driver and CUDA; empty on a host without a GPU."""
    gpu = first_gpu()
    return gpu.to_json() if gpu else {}


def why_not_build(compute_capabilities: Sequence[str]) -> str | None:
    """None if TensorRT-RTX is installed and builds for these compute capabilities; no GPU is needed."""
    installed = next(iter(versions().values()), None)
    if installed is None:
        return "TensorRT-RTX is not installed; pip install tensorrt-rtx"
    return why_not_target("tensorrt_rtx", installed, compute_capabilities)


def build(request: BuildRequest, log: Callable[[str], None]) -> BuildReport:
    """Write one engine for all of `request.compute_capabilities`. Raises `BuildError`, `TargetError`."""
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
