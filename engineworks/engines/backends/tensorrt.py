"""TensorRT 10 and 11: builds on the GPU that the engine is for, because it times kernels there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from engineworks.engines.backends import _trt
from engineworks.engines.backends._trt_backend import TrtBackend
from engineworks.engines.backends._trt_config import SHARED, SMOKE, TENSORRT_ONLY
from engineworks.engines.backends.base import BuildMemory, Option, Traits, TritonBackend
from engineworks.engines.capabilities import CAPABILITIES
from engineworks.host import gpu
from engineworks.host.nvml import GpuWatch

TITLE = CAPABILITIES["tensorrt"].title
DISTRIBUTIONS = ("tensorrt", "tensorrt-cu13", "tensorrt-cu12")
NEEDS_GPU_TO_BUILD = True
OPTIONS: Mapping[str, Option] = {**SHARED, **TENSORRT_ONLY}
IMPORTS = ("tensorrt", "onnx")

TRAITS = Traits(
    build_memory=BuildMemory(1500.0, 3.0),
    triton=TritonBackend(
        "tensorrt", ("numpy", "pydantic", "tensorrt", "cuda-bindings", "nvidia-ml-py"), own_profiles=True
    ),
    smoke_options=SMOKE,
    own_process=True,
)
"""Memory: not measured; the libraries are larger than TensorRT-RTX's, and the builder works alike. The vendor keeps the
first logger of a process, and the builds' logger is slow: runs need a process of their own."""

VENDOR = _trt.Vendor("tensorrt", TITLE, "tensorrt", DISTRIBUTIONS, OPTIONS, rtx=False)

_BACKEND = TrtBackend(VENDOR)
versions, hardware, device_watch = VENDOR.versions, gpu.describe, GpuWatch
build, why_not_run, load = _BACKEND.build, _BACKEND.why_not_run, _BACKEND.load
memory_meter, layer_times, open_parts = _BACKEND.memory_meter, _BACKEND.layer_times, _BACKEND.open_parts


def why_not_build(compute_capabilities: Sequence[str]) -> str | None:
    """Return why this host cannot build: TensorRT is missing, or the GPU is not the target's."""
    wrong = _BACKEND.why_not_build(compute_capabilities)
    if wrong is not None:
        return wrong
    here, wanted = gpu.first_gpu(), compute_capabilities[0]
    if here is None:
        return f"TensorRT builds only on a GPU of compute capability {wanted}, and there is none here"
    if here.compute_capability != wanted:
        return (
            f"TensorRT builds only for the GPU that it runs on: the {here.name} here has compute capability "
            f"{here.compute_capability}, the target {wanted}"
        )
    return None
