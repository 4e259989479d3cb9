"""Time per layer of an engine on a GPU: by the vendor's profiler, or kernel by kernel by CUPTI through torch.profiler.

The profiler times layers by CUDA events, without CUDA graphs. Where it reports nothing, the kernels themselves are
traced. The engine's inspector says which ONNX nodes a layer holds, if the engine was built with detailed
`profiling_verbosity`; else the layers' names do, as far as they hold those of nodes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from engineworks.engines.backends.base import TimedLayer
from engineworks.errors import RunError

ONNX_LAYER = re.compile(r"\[ONNX Layer: ([^\]]*)\]")
"""How the inspector names the ONNX nodes of a layer, in its metadata."""

Launch = Callable[[], None]


def make_profiler(trt: Any) -> Any:
    """A profiler of the vendor's class that adds up the milliseconds of each layer."""

    class Profiler(trt.IProfiler):  # type: ignore[misc]  # the vendor's module is not typed
        def __init__(self) -> None:
            super().__init__()
            self.spent: dict[str, float] = {}

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            self.spent[layer_name] = self.spent.get(layer_name, 0.0) + ms

    return Profiler()


def time_by_profiler(trt: Any, context: Any, launch: Launch, runs: int) -> dict[str, float]:
    """Layer → ms of a run, in the engine's order; empty where the runtime reports nothing."""
    try:
        profiler = make_profiler(trt)
        context.profiler = profiler
        context.enqueue_emits_profile = True
    except (AttributeError, TypeError, RuntimeError):  # a version without this interface
        return {}
    launch()
    profiler.spent.clear()
    for _ in range(runs):
        launch()
    return {name: ms / runs for name, ms in profiler.spent.items()}


def time_by_kernels(launch: Launch, runs: int) -> list[TimedLayer]:
    """Every kernel of a run by CUPTI. Raises `RunError` where torch is not installed or sees no kernel."""
    try:
        from torch.profiler import ProfilerActivity, profile
    except ImportError as error:
        raise RunError(
            f"the runtime's profiler reports no layers, and kernels are traced by torch, which is missing: {error}",
            hint="pip install torch",
        ) from None
    launch()
    with profile(activities=[ProfilerActivity.CUDA]) as trace:
        for _ in range(runs):
            launch()
    layers = [
        TimedLayer(event.key, "kernel", getattr(event, "device_time_total", 0.0) / 1000 / runs, kernel=event.key)
        for event in trace.key_averages()
        if getattr(event, "device_time_total", 0.0) and not event.key.startswith("Mem")
    ]
    if not layers:
        raise RunError("neither the runtime's profiler nor CUPTI reports a layer or a kernel")
    return layers


def layers_of(trt: Any, engine: Any, spent: Mapping[str, float]) -> list[TimedLayer]:
    """The timed layers with what the engine's inspector knows of each."""
    known = _inspected(trt, engine)
    return [
        TimedLayer(
            name, str(about.get("LayerType", "layer")), ms, names=_nodes(name, about),
            kernel=str(about.get("TacticName", "") or ""),
        )
        for name, ms in spent.items()
        for about in [known.get(name, {})]
    ]  # fmt: skip


def _inspected(trt: Any, engine: Any) -> dict[str, Mapping[str, Any]]:
    """Layer → what the inspector says of it; empty for an engine that was built to say nothing."""
    try:
        text = engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
        layers = json.loads(text).get("Layers", [])
    except (AttributeError, ValueError):
        return {}
    return {str(layer.get("Name", "")): layer for layer in layers if isinstance(layer, dict)}


def _nodes(name: str, about: Mapping[str, Any]) -> tuple[str, ...]:
    named = ONNX_LAYER.findall(str(about.get("Metadata", "")))
    return tuple(dict.fromkeys(named)) or tuple(part.strip() for part in name.split(" + "))
