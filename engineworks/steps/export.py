"""Model source → model.onnx."""

from __future__ import annotations

from collections.abc import Sequence

from engineworks.errors import ModelError
from engineworks.model.export.interface import export_onnx
from engineworks.steps.step_job import StepJob
from engineworks.steps.user_export import export_in_sandbox


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
