"""A trtexec command line → requests for a recipe, and a sentence for each option without a counterpart.

Options as `trtexec --help` of TensorRT 10 lists them, and those of 8 that scripts still use.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from engineworks.commands.init.draft import InitOptions
from engineworks.errors import InputError

Shape = tuple[int, ...]

PRECISIONS: Mapping[str, tuple[str, ...]] = {
    "fp16": ("fp16",), "bf16": ("bf16",), "int8": ("int8",), "fp8": ("fp8",), "int4": ("int4_weights",),
    "best": ("fp16", "int8"), "stronglyTyped": ("as_is",),
}  # fmt: skip

NEEDLESS: Mapping[str, str] = {
    "saveEngine": "engines lie in the store under their digests; `engineworks package` writes them out",
    "timingCacheFile": "timing caches are kept per device, driver and version by themselves",
    "iterations": "runs are counted until the figures settle",
    "duration": "runs are counted until the figures settle",
    "warmUp": "warm-up is found, not guessed",
    "avgRuns": "every run is a sample of its own",
    "percentile": "p50, p90 and p99 are always measured; limits: performance.budget",
    "noTF32": "TF32 is off unless a target's options say tf32: true",
    "noDataTransfers": "latency is measured with and without copies",
    "useSpinWait": "runs are timed by the device's events and the host's clock",
    "separateProfileRun": "measuring and profiling are apart anyway",
    "verbose": "`engineworks build -v`; the build log is in the record",
    "buildOnly": "building and measuring are steps of their own",
    "skipInference": "building and measuring are steps of their own",
    "profilingVerbosity": "the build log and the sidecar are in the record",
    "exportTimes": "every sample is in latency.json of the record",
    "exportOutput": "the outputs are compared, row by row, with the reference",
}
"""Options that request what happens anyway."""

IMPOSSIBLE: Mapping[str, str] = {
    "calib": "a calibration cache of TensorRT 8 cannot be read: int8 is calibrated on data.calibration",
    "loadEngine": "an engine without its model cannot be evaluated: give --onnx",
    "loadInputs": "raw input files: put the arrays into an .npz and name it under data.evaluation",
    "plugins": "plugin libraries are not loaded",
    "dynamicPlugins": "plugin libraries are not loaded",
    "setPluginsToSerialize": "plugin libraries are not loaded",
    "layerPrecisions": "precisions of single layers: write a mixture (docs/choosing-a-precision.md)",
    "layerOutputTypes": "precisions of single layers: write a mixture (docs/choosing-a-precision.md)",
    "precisionConstraints": "precisions lie in the graph and are always obeyed",
    "sparsity": "structured sparsity is not supported",
    "inputIOFormats": "inputs and outputs keep the model's types and layout",
    "outputIOFormats": "inputs and outputs keep the model's types and layout",
    "useDLACore": "DLA is not supported",
    "allowGPUFallback": "DLA is not supported",
    "refit": "refitting is not supported",
    "stripWeights": "engines without weights are not supported",
    "device": "which GPU runs a job is its pool's affair: pool in _targets.yaml",
    "tacticSources": "tactic sources are the builder's own choice",
    "uff": "UFF models are not supported: export ONNX",
    "deploy": "Caffe models are not supported: export ONNX",
    "memPoolSize": "only the workspace's size has a place",
    "markDebug": "debug tensors are not supported",
    "safe": "safety engines are not supported",
}
"""Options without a place in a recipe, and what to do instead."""

_UNIT_MIB = {"B": 2.0**-20, "K": 2.0**-10, "M": 1.0, "G": 1024.0}


@dataclass
class _Reading:
    model: str = ""
    precisions: list[str] = field(default_factory=list)
    shapes: dict[str, dict[str, Shape]] = field(default_factory=dict)
    cuda_graphs: bool = False
    streams: int = 1
    target_options: dict[str, str] = field(default_factory=dict)
    dropped: list[str] = field(default_factory=list)


def read_trtexec(command: str) -> InitOptions:
    """Translate the command line. Raises `InputError` if it names no ONNX model or does not parse."""
    try:
        arguments = shlex.split(command.replace("\\\n", " "))
    except ValueError as error:
        raise InputError(f"the trtexec command line does not parse: {error}", hint="put it in quotes") from None
    reading = _Reading()
    for name, value in _options(arguments):
        _take(reading, name, value)
    if not reading.model:
        raise InputError("the trtexec command line names no --onnx=FILE", hint="only ONNX models can be translated")
    return _wishes(reading)


def _options(arguments: list[str]) -> list[tuple[str, str]]:
    """Return --name=value pairs, also for two separate shell words; the program's name is left out."""
    options: list[tuple[str, str]] = []
    for argument in arguments:
        if argument.startswith("--"):
            name, _, value = argument[2:].partition("=")
            options.append((name, value))
        elif options and not options[-1][1]:
            options[-1] = (options[-1][0], argument)
    return options


def _take(reading: _Reading, name: str, value: str) -> None:
    translate = _TRANSLATED.get(name)
    if name in PRECISIONS:
        reading.precisions += [p for p in PRECISIONS[name] if p not in reading.precisions]
    elif translate is not None:
        translate(reading, name, value)
    elif name in NEEDLESS:
        reading.dropped.append(f"--{name}: not needed, {NEEDLESS[name]}")
    elif name in IMPOSSIBLE:
        reading.dropped.append(f"--{name}: {IMPOSSIBLE[name]}")
    else:
        reading.dropped.append(f"--{name}: has no place in a recipe")


def _shapes(reading: _Reading, name: str, value: str) -> None:
    """Read 'x:1x3x224x224,y:1x8' (names may hold colons, and be quoted as trtexec requires)."""
    for part in value.split(","):
        tensor, _, lengths = part.strip().rpartition(":")
        if not re.fullmatch(r"\d+(x\d+)*", lengths) or not tensor:
            reading.dropped.append(f"--{name}: '{part}' is not NAME:1x2x3")
            continue
        given = reading.shapes.setdefault(tensor.strip("'\""), {})
        given[name] = tuple(int(n) for n in lengths.split("x"))


def _memory(reading: _Reading, name: str, value: str) -> None:
    """Read 'workspace:4096M' or '4096', in MiB if no unit is given."""
    for part in value.split(","):
        pool, _, size = part.rpartition(":")
        match = re.fullmatch(r"(\d+(?:\.\d+)?)([BKMG]?)(?:i?B)?", size, re.IGNORECASE)
        if pool not in ("", "workspace") or not match:
            reading.dropped.append(f"--{name}: of '{part}' nothing has a place: only the workspace's size has")
            continue
        mib = float(match[1]) * _UNIT_MIB[match[2].upper() or "M"]
        reading.target_options["workspace_mib"] = str(max(1, round(mib)))


def _level(reading: _Reading, name: str, value: str) -> None:
    reading.target_options["builder_optimization_level"] = value


def _model(reading: _Reading, name: str, value: str) -> None:
    reading.model = value


def _graph(reading: _Reading, name: str, value: str) -> None:
    reading.cuda_graphs = True


def _streams(reading: _Reading, name: str, value: str) -> None:
    if value.isdigit() and 1 <= int(value) <= 64:
        reading.streams = int(value)
    else:
        reading.dropped.append(f"--{name}: '{value}' is not a number from 1 to 64")


_TRANSLATED: Mapping[str, Callable[[_Reading, str, str], None]] = {
    "onnx": _model, "minShapes": _shapes, "optShapes": _shapes, "maxShapes": _shapes, "shapes": _shapes,
    "memPoolSize": _memory, "workspace": _memory, "builderOptimizationLevel": _level,
    "useCudaGraph": _graph, "streams": _streams, "infStreams": _streams,
}  # fmt: skip


def _wishes(reading: _Reading) -> InitOptions:
    kept = ["translated from a trtexec command line"]
    shapes = {}
    for tensor, given in reading.shapes.items():
        opt = given.get("optShapes") or given.get("shapes") or given.get("maxShapes") or given["minShapes"]
        shapes[tensor] = (given.get("minShapes", opt), opt, given.get("maxShapes", opt))
        kept.append(f"shapes of {tensor}: {' / '.join('x'.join(map(str, s)) for s in shapes[tensor])}")
    precisions = ("as_is",) if "as_is" in reading.precisions else ("fp32", *reading.precisions)
    kept.append(f"precisions: {', '.join(precisions)}")
    if reading.cuda_graphs:
        kept.append("--useCudaGraph: performance.serving.cuda_graphs")
    if reading.streams > 1:
        kept.append(f"--streams: performance.streams [1, {reading.streams}]")
    if reading.target_options:
        options = ", ".join(f"{k}: {v}" for k, v in reading.target_options.items())
        reading.dropped.append(f"builder options belong to a target: options: {{{options}}} in _targets.yaml")
    return InitOptions(
        model=reading.model, name=Path(reading.model).stem, precisions=precisions, shapes=shapes,
        cuda_graphs=reading.cuda_graphs, streams=(1, reading.streams) if reading.streams > 1 else (),
        kept=tuple(kept), dropped=tuple(reading.dropped),
    )  # fmt: skip
