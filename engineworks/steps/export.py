"""Model source → model.onnx."""

from __future__ import annotations

from engineworks.errors import ModelError
from engineworks.model.export.interface import export_onnx
from engineworks.model.onnx_files import model_files
from engineworks.steps.step_job import StepJob
from engineworks.steps.user_export import export_in_sandbox


def run(job: StepJob) -> None:
    if job.params["source"] == "onnx":
        _same_files(job)
        report = export_onnx(job.path("source"), job.out)
    else:
        report = export_in_sandbox(job)
    for note in report.notes:
        job.echo(note)
    job.write_json("export.json", report.to_json())


def _same_files(job: StepJob) -> None:
    """Check that ONNX finds the weights that the plan found in the file. Otherwise the key is incomplete."""
    planned = set(job.unkeyed["files"])
    for file in model_files(job.path("source")):
        if str(file.resolve()) not in planned:
            raise ModelError(
                f"{job.path('source')}: the external data '{file.name}' belongs to the attribute of a node",
                hint="save the model with its weights as initializers",
            )
