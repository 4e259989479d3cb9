"""The interface of peers: a module that satisfies `Peer`. Functions import its framework."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from engineworks.engines.backends.base import DeviceWatch, MemoryMeter, Session
from engineworks.errors import RunError
from engineworks.host.lazy import Array
from engineworks.model.export.interface import Interface

if TYPE_CHECKING:
    import torch

    from engineworks.engines.decoder.base import PromptRunner


@dataclass(frozen=True)
class Origin:
    """The recipe's own source, for peers that run it instead of the ONNX file.

    kind: "torch", "huggingface" or "mlflow_pytorch". path: the module's file or the model's folder. folder: the
    recipe's. files: those that a factory may read. factory, task: from the recipe. open_logged: loads a model from its
    MLflow folder; passed in because only `tracking` imports MLflow.
    """

    kind: str
    path: Path
    folder: Path
    files: tuple[Path, ...]
    factory: str | None
    task: str | None
    interface: Interface
    open_logged: Callable[[Path], torch.nn.Module] | None = None


@dataclass(frozen=True)
class PeerModel:
    """The input of a peer: the ONNX file in the requested precision, or the origin for a peer that runs the source."""

    precision: str
    onnx: Path | None = None
    origin: Origin | None = None


class Peer(Protocol):
    """A framework that a recipe's engines are compared with, called in a fresh child process."""

    TITLE: str
    """Its name in tables, such as "ONNX Runtime, CUDA"."""

    FROM_SOURCE: bool
    """Whether it runs the recipe's source instead of the ONNX file."""

    def precisions(self, asked: Sequence[str]) -> tuple[str, ...]:
        """Return the precisions to compare in. asked: those of the recipe."""
        ...

    def why_not(self, source: str, precision: str) -> str | None:
        """Return why this host cannot run a model of such a source ("onnx", "torch", …) in this precision, None if it
        can. Imports nothing heavy."""
        ...

    def versions(self) -> Mapping[str, str | None]:
        """Return versions of the distributions that shape its measurements, from package metadata."""
        ...

    def hardware(self) -> Mapping[str, str]:
        """Return what its measurements depend on here."""
        ...

    def open_library(self) -> None:
        """Import the framework, so that loading a model can be timed separately."""
        ...

    def memory_meter(self) -> MemoryMeter:
        """Return a meter of memory where its models run. Call `open_library` before."""
        ...

    def device_watch(self) -> DeviceWatch:
        """Return a watch of the device. Call `open_library` before."""
        ...

    def load(self, model: PeerModel) -> Session:
        """Return a session. Raises `RunError`, `ModelError` or `ExportError` with one clear message."""
        ...


@runtime_checkable
class GeneratingPeer(Peer, Protocol):
    """A peer that generates text with a decoder as well."""

    def load_decoder(self, model: PeerModel, streams: int) -> PromptRunner:
        """Return a decoder for so many streams. Raises as `load`."""
        ...


class PeerSession:
    """A baseline's session: one run at a time."""

    def throughput(self, feeds: Mapping[str, Array], streams: int, seconds: float) -> float:
        """Raises `RunError`: a peer has no streams."""
        raise RunError(f"throughput over {streams} streams is not measured for a peer: one run at a time is compared")


def time_each(once: Callable[[], object], runs: int) -> tuple[float, ...]:
    """Return the time of each of the runs in ms, by the host's clock."""
    clock = time.perf_counter_ns
    times = []
    for _ in range(runs):
        start = clock()
        once()
        times.append((clock() - start) / 1e6)
    return tuple(times)
