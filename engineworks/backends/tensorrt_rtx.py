"""TensorRT-RTX: builds ahead of time, on any machine, for the compute capabilities that the target names."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from engineworks.backends import _trt
from engineworks.backends._gpu import first_gpu
from engineworks.backends._trt_config import SHARED
from engineworks.backends.base import BuildReport, BuildRequest
from engineworks.capabilities import why_not_target

TITLE = "TensorRT-RTX"
DISTRIBUTIONS = ("tensorrt-rtx",)
NEEDS_GPU_TO_BUILD = False
OPTIONS = SHARED
IMPORTS = ("tensorrt_rtx", "onnx")

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
