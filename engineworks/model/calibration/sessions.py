"""The segments of a model as ONNX Runtime sessions: one batch goes through all of them, tensors are handed out."""

from __future__ import annotations

import difflib
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from engineworks.backends._cpu import limit_threads
from engineworks.backends._gpu import first_gpu
from engineworks.errors import CalibrationError, SamplesError
from engineworks.model.calibration.heap import trim_heap
from engineworks.model.calibration.segments import Segment, plan_segments, segment_model, tensor_types
from engineworks.model.onnx_files import graph_inputs, load_model
from engineworks.tensors import TensorSpec

if TYPE_CHECKING:
    import onnx
    import onnxruntime

    Tensor: TypeAlias = NDArray[Any] | onnxruntime.OrtValue

Device = Literal["auto", "cpu", "cuda"]

CUDA_PROVIDER = "CUDAExecutionProvider"


@dataclass(frozen=True)
class Place:
    """Where tensors stay between segments: a device as ONNX Runtime calls it, "" for the host's memory, and the
    execution providers that compute there."""

    device: str
    providers: tuple[Any, ...] = ()


HOST = Place("")

_CUDA_OPTIONS = {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC", "arena_extend_strategy": "kSameAsRequested"}
"""TF32 would round the reference itself; an exhaustive search would be made anew for every shape of ragged batches."""

_TRIM_ABOVE_BYTES = 1 << 26
"""Tensors of one segment after which freed memory is given back at once."""

_TRIM_EVERY_RUNS = 8
"""How often it is given back otherwise: pages that come back have to be cleared, a fifth of a small batch's time."""


class SegmentedModel:
    """Runs a model segment by segment; see `open_segments`."""

    def __init__(
        self,
        inputs: Sequence[TensorSpec],
        wanted: Sequence[str],
        segments: Sequence[Segment],
        sessions: Sequence[onnxruntime.InferenceSession],
        place: Place = HOST,
    ) -> None:
        self.inputs = tuple(inputs)
        self.provider: str = sessions[0].get_providers()[0] if sessions else "CPUExecutionProvider"
        self.place = place
        self._wanted = frozenset(wanted)
        self._steps = tuple(zip(segments, sessions, strict=True))
        self._last_use = {name: at for at, segment in enumerate(segments) for name in segment.inputs}
        self._runs = 0

    def run(self, feeds: Mapping[str, NDArray[Any]], receive: Callable[[Mapping[str, Tensor]], None]) -> None:
        """Run one batch; `receive` gets the wanted tensors of one segment after the other, which are freed as soon as
        no segment needs them: arrays, or ONNX Runtime's own where they stay on a device.

        Raises `SamplesError` if the names of `feeds` are not the model's inputs, `CalibrationError` with what ONNX
        Runtime says if the model does not run on them.
        """
        self._check_names(feeds)
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
        if self._runs % _TRIM_EVERY_RUNS == 1:  # the first too: loading leaves holes
            trim_heap()

    def _check_names(self, feeds: Mapping[str, NDArray[Any]]) -> None:
        names = [spec.name for spec in self.inputs]
        for name in names:
            if name not in feeds:
                raise SamplesError(
                    f"calibration sample has no '{name}'; it holds {_listed(feeds)}",
                    hint=f"the model asks for {_listed(names)}",
                )
        for name in feeds:
            if name not in names:
                raise SamplesError(
                    f"calibration sample holds '{name}', which is no input of the model",
                    hint=f"its inputs are {_listed(names)}",
                )


def open_segments(path: Path, wanted: Sequence[str], threads: int, device: Device = "auto") -> SegmentedModel:
    """Sessions for all segments of the ONNX file that lead to the tensors `wanted`; `threads` as in ONNX Runtime.

    device: "auto" runs them on a GPU where ONNX Runtime's CUDA provider and a GPU are there.

    Weights beside the file are mapped into memory from there; weights inside of it pass through a temporary folder,
    so that the parsed file is gone before the first session is opened. Raises `CalibrationError` for a tensor that
    the model does not have and for a model that ONNX Runtime does not load.
    """
    model = load_model(path, weights=False)
    inputs = graph_inputs(model)
    given = {spec.name for spec in inputs}
    _check_tensors(model, wanted, given)
    types = tensor_types(model)
    segments = plan_segments(model, [name for name in wanted if name not in given], types)
    with tempfile.TemporaryDirectory(prefix="calibration-") as folder:
        parts = [_write(segment_model(model, s, types), Path(folder) / f"{at}.onnx") for at, s in enumerate(segments)]
        del model
        providers = choose_providers(device)
        sessions = [_open(part, path, threads, providers) for part in parts]
    return SegmentedModel(inputs, wanted, segments, sessions, _place(sessions, providers))


def _place(sessions: Sequence[onnxruntime.InferenceSession], providers: Sequence[Any]) -> Place:
    """Where the sessions leave their tensors: on the GPU, unless ONNX Runtime fell back to the CPU."""
    on_gpu = bool(sessions) and all(session.get_providers()[0] == CUDA_PROVIDER for session in sessions)
    return Place("cuda", tuple(providers)) if on_gpu else HOST


def _check_tensors(model: onnx.ModelProto, wanted: Sequence[str], given: set[str]) -> None:
    known = given.union(name for node in model.graph.node for name in node.output if name)
    for name in wanted:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            raise CalibrationError(
                f"the model has no activation '{name}'",
                hint=f"did you mean '{close[0]}'?" if close else "calibrate the model that will be lowered",
            )


def _write(part: onnx.ModelProto, file: Path) -> Path | bytes:
    """The segment as ONNX Runtime is to load it: a file, or bytes where its weights lie beside the original file."""
    import onnx

    if any(onnx.external_data_helper.uses_external_data(tensor) for tensor in part.graph.initializer):
        serialized: bytes = part.SerializeToString()
        return serialized
    onnx.save(part, str(file))
    return file


def choose_providers(device: Device) -> list[str | tuple[str, dict[str, str]]]:
    """Execution providers of ONNX Runtime, best first. Raises `CalibrationError` for "cuda" where there is none."""
    import onnxruntime

    there = CUDA_PROVIDER in onnxruntime.get_available_providers() and first_gpu() is not None
    if device == "cuda" and not there:
        raise CalibrationError("calibration on CUDA: ONNX Runtime has no CUDA provider here, or there is no GPU")
    if device == "cpu" or not there:
        return ["CPUExecutionProvider"]
    onnxruntime.preload_dlls()
    return [(CUDA_PROVIDER, _CUDA_OPTIONS), "CPUExecutionProvider"]


def _open(
    part: Path | bytes, source: Path, threads: int, providers: list[str | tuple[str, dict[str, str]]]
) -> onnxruntime.InferenceSession:
    """Without the memory arena, which keeps the peak of every shape; without layouts that copy all weights."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.enable_cpu_mem_arena = False
    options.enable_mem_pattern = False
    limit_threads(options, threads)
    options.log_severity_level = 3
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", str(source.parent.resolve())
    )
    with _runtime_errors(f"{source}: ONNX Runtime does not load the model"):
        model = part if isinstance(part, bytes) else str(part)
        return onnxruntime.InferenceSession(model, options, providers=providers)


def _run(
    session: onnxruntime.InferenceSession, segment: Segment, alive: Mapping[str, Tensor], place: Place
) -> list[Tensor]:
    """The segment's outputs, in its order, left where they are made."""
    with _runtime_errors("ONNX Runtime does not run the model on a calibration sample"):
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


@contextmanager
def _runtime_errors(what: str) -> Iterator[None]:
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    kinds = (
        state.EPFail, state.Fail, state.InvalidArgument, state.InvalidGraph, state.InvalidProtobuf, state.NoModel,
        state.NoSuchFile, state.NotImplemented, state.RuntimeException, ValueError, TypeError,
    )  # fmt: skip
    try:
        yield
    except kinds as error:
        raise CalibrationError(f"{what}: {error}") from error


def _listed(names: Mapping[str, object] | Sequence[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)
