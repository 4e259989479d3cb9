"""What a peer is: a module that satisfies `Peer`. Frameworks are imported inside functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from engineworks.engines.backends.base import DeviceWatch, MemoryMeter, Session
from engineworks.model.export.interface import Interface

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Origin:
    """The recipe's own source, for peers that run it instead of the ONNX file.

    kind: "torch", "huggingface" or "mlflow_pytorch". path: the module's file or the model's folder. folder: the
    recipe's. files: those that a factory may read. factory, task: as the recipe says. open_logged: loads a model that
    MLflow holds, from its folder; it is handed in because only `tracking` knows MLflow.
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
    """What a peer loads: the ONNX file in the asked precision, or the origin where it runs the source itself."""

    precision: str
    onnx: Path | None = None
    origin: Origin | None = None


class Peer(Protocol):
    """A framework that a recipe's engines are compared with, called in a fresh child process."""

    TITLE: str
    """Its name in tables, such as "ONNX Runtime, CUDA"."""

    FROM_SOURCE: bool
    """Whether it runs the recipe's source itself, and not the ONNX file."""

    def precisions(self, asked: Sequence[str]) -> tuple[str, ...]:
        """The precisions to compare in; `asked`: those of the recipe."""
        ...

    def why_not(self, source: str, precision: str) -> str | None:
        """None if this host can run a model of such a source ("onnx", "torch", …) in this precision, otherwise the
        reason, as a sentence. Nothing heavy is imported."""
        ...

    def versions(self) -> Mapping[str, str | None]:
        """Versions of the distributions that shape its figures, from package metadata."""
        ...

    def hardware(self) -> Mapping[str, str]:
        """What its figures depend on here."""
        ...

    def open_library(self) -> None:
        """Import the framework, so that loading a model can be timed apart from that."""
        ...

    def memory_meter(self) -> MemoryMeter:
        """Memory where its models run. After `open_library`."""
        ...

    def device_watch(self) -> DeviceWatch:
        """Who looks at the device meanwhile. After `open_library`."""
        ...

    def load(self, model: PeerModel) -> Session:
        """A session that is ready to run. Raises `RunError`, `ModelError` or `ExportError` with one clear message."""
        ...
