"""Common code of the backends `tensorrt` and `tensorrt_rtx`: a backend's functions for one vendor module."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engineworks.engines.backends import _trt
from engineworks.engines.backends._trt_host import why_not_run_here
from engineworks.engines.backends.base import PLAIN, BuildReport, BuildRequest, Serving
from engineworks.engines.capabilities import why_not_target
from engineworks.tensors import TensorSpec

if TYPE_CHECKING:
    from engineworks.engines.backends._cuda import DeviceMemory
    from engineworks.engines.backends._trt_session import TrtSession
    from engineworks.engines.backends.base import TimedLayer
    from engineworks.engines.decoder.parts import Part
    from engineworks.engines.decoder.trt import TrtDecoder
    from engineworks.model.decoder.interface import DecoderInterface


@dataclass(frozen=True)
class TrtBackend:
    """`Builder` and `Runner` (see `base`) for one vendor module."""

    vendor: _trt.Vendor

    def build(self, request: BuildRequest, log: Callable[[str], None]) -> BuildReport:
        """Write one engine for `request.compute_capabilities`. Raises `BuildError`, `TargetError`."""
        return _trt.build(self.vendor, request, log)

    def why_not_build(self, compute_capabilities: Sequence[str]) -> str | None:
        """Return why this host cannot build: the vendor's library is missing, or cannot for these GPUs."""
        installed = next(iter(self.vendor.versions().values()), None)
        if installed is None:
            return f"{self.vendor.title} is not installed; pip install {self.vendor.distributions[0]}"
        return why_not_target(self.vendor.name, installed, compute_capabilities)

    def why_not_run(self, compute_capabilities: Sequence[str]) -> str | None:
        """Return why this host's GPU cannot run engines of such a target, None if it can."""
        return why_not_run_here(self.vendor, compute_capabilities)

    def load(
        self,
        engine: Path,
        options: Mapping[str, object],
        *,
        serving: Serving = PLAIN,
        cache: Path | None = None,
        known: Sequence[TensorSpec] = (),
    ) -> TrtSession:
        """Load an engine for the first visible GPU. Raises `RunError`, and `TargetError` for an unknown option."""
        from engineworks.engines.backends._trt_load import load

        return load(self.vendor, engine, options, serving, cache, known)

    def open_parts(
        self, folder: Path, parts: Sequence[Part], interface: DecoderInterface, streams: int, *,
        serving: Serving = PLAIN, cache: Path | None = None,
    ) -> TrtDecoder:  # fmt: skip
        """Load a decoder's parts for the first visible GPU. Raises `RunError`."""
        from engineworks.engines.decoder.trt import TrtDecoder

        return TrtDecoder(self.vendor, folder, parts, interface, streams, serving=serving, cache=cache)

    def layer_times(
        self, engine: Path, options: Mapping[str, object], feeds: Mapping[str, Any], runs: int,
        known: Sequence[TensorSpec], cache: Path | None = None,
    ) -> tuple[str, list[TimedLayer]]:  # fmt: skip
        """Time every layer as `base.LayerTimer` asks, with the kernels that are made for a shape. Raises
        `RunError`."""
        session = self.load(engine, options, serving=Serving(kernels="eager"), cache=cache, known=known)
        try:
            return session.layer_times(feeds, runs)
        finally:
            session.close()

    def memory_meter(self) -> DeviceMemory:
        """Return a meter of the GPU's memory. Raises `RunError` where the GPU does not answer."""
        from engineworks.engines.backends import _cuda

        return _cuda.DeviceMemory()
