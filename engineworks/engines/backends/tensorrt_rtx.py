"""TensorRT-RTX: builds ahead of time, on any machine, for the target's compute capabilities."""

from __future__ import annotations

from engineworks.engines.backends import _trt
from engineworks.engines.backends._trt_backend import TrtBackend
from engineworks.engines.backends._trt_config import SHARED, SMOKE
from engineworks.engines.backends.base import BuildMemory, Traits, TritonBackend
from engineworks.engines.capabilities import CAPABILITIES
from engineworks.host import gpu
from engineworks.host.nvml import GpuWatch

TITLE = CAPABILITIES["tensorrt_rtx"].title
DISTRIBUTIONS = ("tensorrt-rtx",)
NEEDS_GPU_TO_BUILD = False
OPTIONS = SHARED
IMPORTS = ("tensorrt_rtx", "onnx")

TRAITS = Traits(
    build_memory=BuildMemory(400.0, 3.0),
    triton=TritonBackend("python", ("numpy", "pydantic", "tensorrt-rtx", "cuda-bindings", "nvidia-ml-py")),
    smoke_options=SMOKE,
    own_process=True,
)
"""Memory: measured (results/build-memory-cpu.json). No Triton backend reads these engines. As with TensorRT, a process
keeps its first logger."""

VENDOR = _trt.Vendor("tensorrt_rtx", TITLE, "tensorrt_rtx", DISTRIBUTIONS, OPTIONS, rtx=True)

_BACKEND = TrtBackend(VENDOR)
versions, hardware, device_watch = VENDOR.versions, gpu.describe, GpuWatch
build, load = _BACKEND.build, _BACKEND.load
why_not_build, why_not_run = _BACKEND.why_not_build, _BACKEND.why_not_run
memory_meter, layer_times, open_parts = _BACKEND.memory_meter, _BACKEND.layer_times, _BACKEND.open_parts
