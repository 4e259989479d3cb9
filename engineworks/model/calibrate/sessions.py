"""The segments of a model as ONNX Runtime sessions: each batch runs through all and yields the wanted tensors."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from engineworks.errors import CalibrationError
from engineworks.host.lazy import ort
from engineworks.host.memory import trim_heap
from engineworks.model.calibrate.runtime import (
    CPU_PROVIDER,
    CUDA_PROVIDER,
    Device,
    check_names,
    check_tensors,
    choose_providers,
    open_session,
    write_part,
)
from engineworks.model.calibrate.segments import Segment, plan_segments, segment_model, tensor_types
from engineworks.model.onnx_files import graph_inputs, load_model
from engineworks.model.ort import ort_errors_as
from engineworks.tensors import TensorSpec

if TYPE_CHECKING:
    Tensor: TypeAlias = NDArray[Any] | ort.OrtValue


@dataclass(frozen=True)
class Place:
    """Where tensors stay between segments: a device by its ONNX Runtime name, "" for the host's memory, and the
    execution providers that compute there."""

    device: str
    providers: tuple[Any, ...] = ()


HOST = Place("")

_TRIM_ABOVE_BYTES = 1 << 26
"""Tensors of one segment after which freed memory returns to the system at once."""

_TRIM_EVERY_RUNS = 32
"""How often it returns otherwise: pages that come back must be cleared, a fifth of a small batch's time."""


class SegmentedModel:
    """Runs a model segment by segment; see `open_segments`."""

    def __init__(
        self,
        inputs: Sequence[TensorSpec],
        wanted: Sequence[str],
        segments: Sequence[Segment],
        sessions: Sequence[ort.InferenceSession],
        place: Place = HOST,
    ) -> None:
        self.inputs = tuple(inputs)
        self.provider: str = sessions[0].get_providers()[0] if sessions else CPU_PROVIDER
        self.place = place
        self._wanted = frozenset(wanted)
        self._steps = tuple(zip(segments, sessions, strict=True))
        self._last_use = {name: at for at, segment in enumerate(segments) for name in segment.inputs}
        self._runs = 0

    def run(self, feeds: Mapping[str, NDArray[Any]], receive: Callable[[Mapping[str, Tensor]], None]) -> None:
        """Run one batch and pass `receive` the wanted tensors of one segment after the other.

        feeds: by input name, with the shapes and dtypes of the model's inputs. Tensors are arrays, or ONNX Runtime's
        own where they stay on a device, and are freed as soon as no segment needs them. Raises `SamplesError` if the
        names of `feeds` are not the model's inputs, `CalibrationError` with ONNX Runtime's message if the model does
        not run on them.
        """
        check_names(self.inputs, feeds)
        receive({name: feeds[name] for name in feeds if name in self._wanted})
        alive: dict[str, Tensor] = dict(feeds)
        for at, (segment, session) in enumerate(self._steps):
            values = dict(zip(segment.outputs, _run(session, segment, alive, self.place), strict=True))
            large = sum(v.nbytes for v in values.values() if isinstance(v, np.ndarray)) > _TRIM_ABOVE_BYTES
            for name in segment.inputs:
                if self._last_use[name] == at:
                    del alive[name]
            receive({name: value for name, value in values.items() if name in self._wanted})
            alive.update((name, value) for name, value in values.items() if name in self._last_use)
            del values
            if large:
                trim_heap()
        self._runs += 1
        if self._runs % _TRIM_EVERY_RUNS == 1:  # also after the first run, because loading leaves holes
            trim_heap()


def open_segments(path: Path, wanted: Sequence[str], threads: int, device: Device = "auto") -> SegmentedModel:
    """Open sessions for all segments of the ONNX file that lead to the tensors `wanted`; `threads` as in ONNX Runtime.

    device: "auto" runs them on a GPU if ONNX Runtime's CUDA provider and a GPU are present.

    Weights next to the file are mapped into memory from there. Weights inside it pass through a temporary folder, so
    that the parsed file is freed before the first session opens. Raises `CalibrationError` for a tensor that the model
    lacks and for a model that ONNX Runtime does not load.
    """
    model = load_model(path, weights=False)
    inputs = graph_inputs(model)
    given = {spec.name for spec in inputs}
    check_tensors(model, wanted, given)
    types = tensor_types(model)
    segments = plan_segments(model, [name for name in wanted if name not in given], types)
    with tempfile.TemporaryDirectory(prefix="calibration-") as folder:
        parts = [
            write_part(segment_model(model, s, types), Path(folder) / f"{at}.onnx") for at, s in enumerate(segments)
        ]
        del model
        providers = choose_providers(device)
        sessions = [open_session(part, path, threads, providers) for part in parts]
    return SegmentedModel(inputs, wanted, segments, sessions, _place(sessions, providers))


def _place(sessions: Sequence[ort.InferenceSession], providers: Sequence[Any]) -> Place:
    """Return where the sessions leave their tensors: on the GPU, unless ONNX Runtime fell back to the CPU."""
    on_gpu = bool(sessions) and all(session.get_providers()[0] == CUDA_PROVIDER for session in sessions)
    return Place("cuda", tuple(providers)) if on_gpu else HOST


def _run(session: ort.InferenceSession, segment: Segment, alive: Mapping[str, Tensor], place: Place) -> list[Tensor]:
    """Return the segment's outputs, in its order, on the device where they are made."""
    with ort_errors_as(CalibrationError, "ONNX Runtime does not run the model on a calibration sample"):
        if place == HOST:
            values: list[Tensor] = session.run(list(segment.outputs), {name: alive[name] for name in segment.inputs})
            return values
        binding = session.io_binding()
        for name in segment.inputs:
            value = alive[name]
            if isinstance(value, np.ndarray):
                binding.bind_cpu_input(name, np.ascontiguousarray(value))
            else:
                binding.bind_ortvalue_input(name, value)
        for name in segment.outputs:
            binding.bind_output(name, place.device)
        session.run_with_iobinding(binding)
        bound: list[Tensor] = binding.get_outputs()
    return bound
