"""Time per layer of a stored engine, by whatever its backend has: a profile, a profiler, or the GPU's own trace.

A backend that can time its layers has a function `layer_times` of the type `LayerTimer`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from engineworks.engines.backends import backend
from engineworks.engines.engine_session import runner_of
from engineworks.engines.verified import VerifiedEngine, named
from engineworks.errors import RunError
from engineworks.host.lazy import Arrays


@dataclass(frozen=True)
class TimedLayer:
    """One layer as the runtime sees it. ms: mean of a run. inputs, outputs: tensors, where they are known. names: of
    ONNX nodes, where the runtime names them. kernel: '' where it is unknown."""

    name: str
    kind: str
    ms: float
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    kernel: str = ""


class LayerTimer(Protocol):
    def __call__(
        self, engine: Path, options: Mapping[str, object], feeds: Arrays, runs: int, known: Sequence[Any],
        cache: Path | None = None,
    ) -> tuple[str, list[TimedLayer]]:  # fmt: skip
        """Return what timed the layers, and each layer. cache: of kernels that were compiled for this device. Raises
        `RunError` where nothing can."""
        ...


def time_layers(
    engine: VerifiedEngine, target: Mapping[str, Any], feeds: Arrays, runs: int, cache: Path | None
) -> tuple[str, list[TimedLayer]]:
    """Time the layers of a verified engine. Raises `RunError`."""
    runner_of(target)
    timer: LayerTimer | None = getattr(backend(target["backend"]), "layer_times", None)
    if timer is None:
        raise RunError(f"{backend(target['backend']).TITLE} tells no times of layers")
    known = (*engine.sidecar.inputs, *engine.sidecar.outputs)
    with named(engine.path, engine.source):
        return timer(engine.path, target["options"], feeds, runs, known, cache)
