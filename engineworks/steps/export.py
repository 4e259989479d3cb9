"""Model source → model.onnx."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from engineworks.errors import ModelError
from engineworks.model.export.interface import ExportReport, export_onnx, interface_from_json, require_packages
from engineworks.model.onnx_files import model_files
from engineworks.steps.step_job import StepJob


def run(job: StepJob) -> None:
    report = _EXPORTERS[job.params["source"]](job)
    for note in report.notes:
        job.say(note)
    job.write_json("export.json", report.to_json())


def _onnx(job: StepJob) -> ExportReport:
    _same_files(job)
    return export_onnx(job.path("source"), job.out)


def _torch(job: StepJob) -> ExportReport:
    from engineworks.model.export.from_torch import export_torch

    interface = interface_from_json(job.params["interface"])
    return export_torch(job.params["factory"], job.path("folder"), interface, job.out, files=_declared(job))


def _huggingface(job: StepJob) -> ExportReport:
    from engineworks.model.export.from_huggingface import export_huggingface

    interface = interface_from_json(job.params["interface"])
    return export_huggingface(str(job.path("source")), job.path("folder"), interface, job.out, task=job.params["task"])


def _mlflow_pytorch(job: StepJob) -> ExportReport:
    from engineworks.model.export.torch_onnx import TORCH_PACKAGES, write_onnx
    from engineworks.tracking.sources import load_pytorch

    require_packages(TORCH_PACKAGES, extra="torch", doing="a PyTorch model from MLflow")
    source, interface = job.path("source"), interface_from_json(job.params["interface"])
    return write_onnx(load_pytorch(source), interface, job.out, root=source)


_EXPORTERS: Mapping[str, Callable[[StepJob], ExportReport]] = {
    "onnx": _onnx,
    "torch": _torch,
    "huggingface": _huggingface,
    "mlflow_pytorch": _mlflow_pytorch,
}


def _declared(job: StepJob) -> list[Path]:
    """Return files that the key covers besides the factory's own source."""
    return [Path(p) for p in job.unkeyed["files"]]


def _same_files(job: StepJob) -> None:
    """Check that ONNX finds the weights that the plan found in the file. Otherwise the key is incomplete."""
    planned = set(job.unkeyed["files"])
    for file in model_files(job.path("source")):
        if str(file.resolve()) not in planned:
            raise ModelError(
                f"{job.path('source')}: the external data '{file.name}' belongs to the attribute of a node",
                hint="save the model with its weights as initializers",
            )
