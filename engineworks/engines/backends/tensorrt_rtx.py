"""TensorRT-RTX: builds ahead of time, on any machine, for the target's compute capabilities."""

from __future__ import annotations

from collections.abc import Sequence

from engineworks.engines.backends import _trt
from engineworks.engines.backends._trt_backend import TrtBackend
from engineworks.engines.backends._trt_config import SHARED, SMOKE
from engineworks.engines.backends.base import BuildMemory, Traits, TritonBackend
from engineworks.engines.capabilities import CAPABILITIES, why_not_target

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
versions, hardware, build = _BACKEND.versions, _BACKEND.hardware, _BACKEND.build
why_not_run, load = _BACKEND.why_not_run, _BACKEND.load
memory_meter, device_watch = _BACKEND.memory_meter, _BACKEND.device_watch
layer_times, open_parts = _BACKEND.layer_times, _BACKEND.open_parts


def why_not_build(compute_capabilities: Sequence[str]) -> str | None:
    """Return why this host cannot build: TensorRT-RTX is missing or does not know these compute capabilities. It needs
    no GPU."""
    installed = next(iter(versions().values()), None)
    if installed is None:
        return "TensorRT-RTX is not installed; pip install tensorrt-rtx"
    return why_not_target("tensorrt_rtx", installed, compute_capabilities)
