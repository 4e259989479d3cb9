"""Model source → `model.onnx` in a separate folder: what every exporter shares, and the export of ONNX files."""

from __future__ import annotations

import importlib.util
import shutil
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engineworks.errors import ExportError, ModelError
from engineworks.host.lazy import onnx
from engineworks.host.packages import installed_version
from engineworks.model.onnx_files import (
    MODEL_FILE,
    check_tensors,
    external_files,
    external_tensors,
    load_detached,
    opset_of,
)
from engineworks.tensors import Dim, Profile, TensorSpec, profile_from_json, spec_from_json
from engineworks.typed_json import Record


@dataclass(frozen=True)
class Interface:
    """What the recipe declares of the exported model: inputs, shapes of the outputs, profiles and opset."""

    inputs: tuple[TensorSpec, ...]
    outputs: Mapping[str, tuple[Dim, ...]]
    profiles: tuple[Profile, ...]
    opset: int

    def to_json(self) -> dict[str, object]:
        return {
            "inputs": [spec.to_json() for spec in self.inputs],
            "outputs": [[name, list(shape)] for name, shape in self.outputs.items()],
            "profiles": [profile.to_json() for profile in self.profiles],
            "opset": self.opset,
        }

    def lengths(self) -> dict[str, tuple[int, ...]]:
        """Every length that a profile names for each dynamic dimension, rising."""
        by_dim: dict[str, set[int]] = {}
        for spec in self.inputs:
            for axis, dim in enumerate(spec.shape):
                if isinstance(dim, str):
                    ranges = [p.inputs[spec.name] for p in self.profiles]
                    by_dim.setdefault(dim, set()).update(r[axis] for x in ranges for r in (x.min, x.opt, x.max))
        return {dim: tuple(sorted(lengths)) for dim, lengths in by_dim.items()}


def interface_from_json(value: Mapping[str, Any]) -> Interface:
    """The inverse of `Interface.to_json`."""
    return Interface(
        inputs=tuple(spec_from_json(v) for v in value["inputs"]),
        outputs={name: tuple(shape) for name, shape in value["outputs"]},
        profiles=tuple(profile_from_json(v) for v in value["profiles"]),
        opset=int(value["opset"]),
    )


@dataclass(frozen=True)
class ExportReport(Record):
    """What was exported and how.

    exporter: "copy", "torch.onnx (dynamo)" or "torch.onnx (TorchScript)". files: all names written, the model first.
    notes: sentences for the record, such as why the first exporter was left. versions: the libraries that shaped it.
    """

    exporter: str
    opset: int
    files: tuple[str, ...]
    bytes: int
    seconds: float
    notes: tuple[str, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)


def export_onnx(source: Path, out: Path) -> ExportReport:
    """Copy an ONNX file into the folder `out` as MODEL_FILE, its external data under their own names.

    Weights are streamed, never held in memory. Raises `ModelError` if it is not a model, or if external data is
    missing, too short, outside of the model's folder or named as MODEL_FILE itself.
    """
    started = time.monotonic()
    if not source.is_file():
        what = "is a folder, not a file" if source.is_dir() else "no such file"
        raise ModelError(f"{source}: {what}", hint="model.source.onnx takes the path of an ONNX file")
    opset, names = checked_model(source)
    _copy(source, out / MODEL_FILE)
    for name in names:
        _copy(source.parent / name, out / name)
    files = (MODEL_FILE, *names)
    return ExportReport(
        exporter="copy", opset=opset, files=files, bytes=folder_bytes(out, files), seconds=time.monotonic() - started
    )


def checked_model(source: Path) -> tuple[int, list[str]]:
    """Return the opset of an ONNX file and the names of its external data. Raises `ModelError` as `export_onnx`."""
    model = load_detached(source)
    external_files(source, model)  # refuses those that are missing or outside of the folder
    check_tensors(model, source)
    return opset_of(model), _external_names(source, model)


def folder_bytes(out: Path, names: Iterable[str]) -> int:
    return sum((out / name).stat().st_size for name in names)


def require_packages(packages: Mapping[str, str], *, extra: str, doing: str) -> None:
    """Raise `ModelError` with the command that installs them if a module (key) is missing. Nothing is imported."""
    missing = sorted(name for module, name in packages.items() if importlib.util.find_spec(module) is None)
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        raise ModelError(
            f"{doing} needs {' and '.join(missing)}, which {verb} not installed",
            hint=f"pip install 'engineworks[{extra}]'",
        )


def versions_of(*distributions: str) -> dict[str, str]:
    """Versions of those that are installed."""
    return {name: version for name in distributions if (version := installed_version(name))}


def _external_names(source: Path, model: onnx.ModelProto) -> list[str]:
    """Names of the files that hold external tensors, each long enough: a truncated download is found here."""
    sizes: dict[str, int] = {}
    for tensor, entry in external_tensors(model, source):
        name = entry.get("location")
        if not name:
            continue
        if Path(name).is_absolute() or ".." in Path(name).parts or name == MODEL_FILE:
            raise ModelError(f"{source}: external data '{name}' cannot keep its name", hint="save it beside the model")
        size = sizes.setdefault(name, (source.parent / name).stat().st_size)
        end = int(entry.get("offset", 0)) + int(entry.get("length", 0))
        if end > size:
            raise ModelError(
                f"{source}: tensor '{tensor.name}' ends at byte {end} of '{name}', which has only {size}",
                hint="the file is cut short: copy it again",
            )
    return sorted(sizes)


def _copy(source: Path, target: Path) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
    except OSError as error:
        raise ExportError(f"cannot copy {source} to {target}: {error.strerror or error}") from None
