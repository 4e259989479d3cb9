"""ONNX Runtime for calibration: where it runs, how it loads a model, and its errors as ours."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from numpy.typing import NDArray

from engineworks.errors import CalibrationError, SamplesError
from engineworks.host.cpu import limit_threads
from engineworks.host.gpu import first_gpu
from engineworks.host.lazy import onnx, ort
from engineworks.model.ort import exact_options, ort_errors_as, ort_level
from engineworks.tensors import TensorSpec

Device = Literal["auto", "cpu", "cuda"]
Provider = str | tuple[str, dict[str, str]]
"""ONNX Runtime's name of an execution provider, with its options if it has any."""

CPU_PROVIDER, CUDA_PROVIDER = "CPUExecutionProvider", "CUDAExecutionProvider"

_CUDA_OPTIONS = {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC", "arena_extend_strategy": "kSameAsRequested"}
"""TF32 would round the reference itself; an exhaustive search would rerun for every shape of ragged batches."""

_SPIN_US = 50
"""Spinning this long before sleep saves a ResNet-50 some percent on two idle cores. With another process on one of them
it costs a quarter, and ONNX Runtime's longer default a half."""


def choose_providers(device: Device) -> list[Provider]:
    """Return execution providers of ONNX Runtime, best first. Raises `CalibrationError` for "cuda" if there is none."""
    there = CUDA_PROVIDER in ort.get_available_providers() and first_gpu() is not None
    if device == "cuda" and not there:
        raise CalibrationError("calibration on CUDA: ONNX Runtime has no CUDA provider here, or there is no GPU")
    if device == "cpu" or not there:
        return [CPU_PROVIDER]
    ort.preload_dlls()
    return [(CUDA_PROVIDER, _CUDA_OPTIONS), CPU_PROVIDER]


def write_part(part: onnx.ModelProto, file: Path, *, external: bool = False) -> Path | bytes:
    """Return a model in the form that ONNX Runtime loads: a file, or bytes if its weights lie next to the original
    file.

    external: write weights next to the graph, one by one, because writing one large file that holds them takes three
    times their size. They stay mapped into memory then, in addition to ONNX Runtime's own copies.
    """
    if any(onnx.external_data_helper.uses_external_data(tensor) for tensor in part.graph.initializer):
        serialized: bytes = part.SerializeToString()
        return serialized
    weights = f"{file.name}.weights"
    onnx.save(part, str(file), save_as_external_data=external, location=weights, size_threshold=1 << 16)
    return file


def open_session(
    part: Path | bytes, source: Path, threads: int, providers: Sequence[Provider], *, alone: bool = False
) -> ort.InferenceSession:
    """Open a session without the memory arena, which keeps the peak of every shape. source: the ONNX file that `part`
    was cut from.

    alone: no other part or counting runs at the same time, so that ONNX Runtime's threads may spin for a moment.
    """
    options = exact_options()
    options.graph_optimization_level = ort_level("all")
    options.enable_cpu_mem_arena = False
    options.enable_mem_pattern = False
    limit_threads(options, threads, spin_us=_SPIN_US if alone else 0)
    options.log_severity_level = 3
    weights = part.parent if isinstance(part, Path) else source.parent
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(weights.resolve()))
    with ort_errors_as(CalibrationError, f"{source}: ONNX Runtime does not load the model"):
        model = part if isinstance(part, bytes) else str(part)
        return ort.InferenceSession(model, options, providers=list(providers))


def check_names(inputs: Sequence[TensorSpec], feeds: Mapping[str, NDArray[Any]]) -> None:
    """Raise `SamplesError` if the names of `feeds` are not those of the model's inputs."""
    names = [spec.name for spec in inputs]
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


def check_tensors(model: onnx.ModelProto, wanted: Sequence[str], given: set[str]) -> None:
    """Raise `CalibrationError` for a tensor that the model lacks."""
    known = given.union(name for node in model.graph.node for name in node.output if name)
    for name in wanted:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            raise CalibrationError(
                f"the model has no activation '{name}'",
                hint=f"did you mean '{close[0]}'?" if close else "calibrate the model that will be lowered",
            )


def _listed(names: Mapping[str, object] | Sequence[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)
