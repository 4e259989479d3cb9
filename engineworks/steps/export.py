"""Model source → model.onnx. A model that a user's code makes is exported in a sandbox.

That code is a factory, a pickle or a model class. The sandbox gives back the bytes of the model's files and notes. This
process never imports that code: it writes the files, checks them as any other ONNX model's, and makes the report.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from engineworks.errors import ExportError, ModelError
from engineworks.host.sandbox import Sandbox, one_line
from engineworks.host.sandbox.serve import Emit
from engineworks.host.sandbox.wire import Array, GarbledError
from engineworks.model.export.interface import (
    ExportReport,
    checked_model,
    export_onnx,
    folder_bytes,
    interface_from_json,
    require_packages,
    versions_of,
)
from engineworks.model.export.torch_onnx import DATA_FILE
from engineworks.model.onnx_files import MODEL_FILE
from engineworks.steps.job import StepJob


def run(job: StepJob) -> None:
    if job.params["source"] == "onnx":
        report = export_onnx(job.path("source"), job.out)
        _same_files(job, report.files[1:])
    else:
        report = export_in_sandbox(job)
    for note in report.notes:
        job.echo(note)
    job.write_json("export.json", report.to_json())


def _same_files(job: StepJob, weights: Sequence[str]) -> None:
    """Check that ONNX finds the weights that the plan found in the file. Otherwise the key is incomplete."""
    planned, folder = set(job.unkeyed["files"]), job.path("source").parent
    for name in weights:
        if str((folder / name).resolve()) not in planned:
            raise ModelError(
                f"{job.path('source')}: the external data '{name}' belongs to the attribute of a node",
                hint="save the model with its weights as initializers",
            )


EXPORT = "engineworks.steps.export:export"
LIBRARIES = ("torch", "onnxscript", "onnx", "onnx-ir")
MAX_NOTES = 20


def export_in_sandbox(job: StepJob) -> ExportReport:
    """Export into `job.out`. Raises as the exporters, and `ModelError` for files that are no whole ONNX model."""
    started = time.monotonic()
    request = {"params": dict(job.params), "unkeyed": dict(job.unkeyed)}
    room = shutil.disk_usage(job.out).free // 2  # it arrives in an unnamed file first
    with (
        Sandbox(EXPORT, what=_what(job), echo=job.echo, error=ExportError, time_limit_s=job.seconds_left()) as sandbox,
        sandbox.ask(request, max_bytes=room, scratch=job.out) as answer,
    ):
        exporter, notes = answer.value["value"].get("exporter"), answer.value["value"].get("notes")
        if not isinstance(exporter, str) or not isinstance(notes, list) or len(notes) > MAX_NOTES:
            raise GarbledError("holds no report")
        for name in (MODEL_FILE, *(n for n in answer.names if n == DATA_FILE)):
            answer.save(name, job.out / name)
    opset, external = checked_model(job.out / MODEL_FILE)
    files = (MODEL_FILE, *external)
    libraries = (*LIBRARIES, "transformers") if job.params["source"] == "huggingface" else LIBRARIES
    return ExportReport(
        one_line(exporter), opset, files, folder_bytes(job.out, files), time.monotonic() - started,
        tuple(one_line(str(note)) for note in notes), versions_of(*libraries),
    )  # fmt: skip


def _what(job: StepJob) -> str:
    factory = job.params.get("factory")
    return f"the factory '{factory}'" if factory else f"the model {job.path('source').name}"


def export(request: Mapping[str, Any], _: Mapping[str, Array], emit: Emit) -> dict[str, Any]:
    """Export in this process, a sandbox; emit the model's files."""
    out = Path(tempfile.mkdtemp())
    report = _EXPORTERS[request["params"]["source"]](request["params"], request["unkeyed"], out)
    for name in report.files:
        emit(name, out / name)
    return {"exporter": report.exporter, "notes": list(report.notes)}


def _torch(params: Mapping[str, Any], places: Mapping[str, Any], out: Path) -> ExportReport:
    from engineworks.model.export.from_torch import export_torch

    declared = [Path(file) for file in places["files"]]  # the key covers them besides the factory's own source
    interface = interface_from_json(params["interface"])
    return export_torch(params["factory"], Path(places["folder"]), interface, out, files=declared)


def _huggingface(params: Mapping[str, Any], places: Mapping[str, Any], out: Path) -> ExportReport:
    from engineworks.model.export.from_huggingface import export_huggingface

    interface = interface_from_json(params["interface"])
    return export_huggingface(places["source"], Path(places["folder"]), interface, out, task=params["task"])


def _mlflow_pytorch(params: Mapping[str, Any], places: Mapping[str, Any], out: Path) -> ExportReport:
    from engineworks.model.export.torch_onnx import TORCH_PACKAGES, write_onnx
    from engineworks.tracking.sources import load_pytorch

    require_packages(TORCH_PACKAGES, extra="torch", doing="a PyTorch model from MLflow")
    source, interface = Path(places["source"]), interface_from_json(params["interface"])
    return write_onnx(load_pytorch(source), interface, out, root=source)


_EXPORTERS: Mapping[str, Callable[[Mapping[str, Any], Mapping[str, Any], Path], ExportReport]] = {
    "torch": _torch,
    "huggingface": _huggingface,
    "mlflow_pytorch": _mlflow_pytorch,
}
