"""Exported ONNX → folded ONNX, numerically verified on real samples, with its inventory."""

from __future__ import annotations

from engineworks.model.fold.fold import fold_model
from engineworks.model.onnx_files import MODEL_FILE
from engineworks.recipe.batch import fixed_batch
from engineworks.recipe.samples import samples_from_json
from engineworks.steps.job import StepJob
from engineworks.tensors import spec_from_json


def run(job: StepJob) -> None:
    specs = tuple(spec_from_json(s) for s in job.params["inputs"])
    samples = samples_from_json(job.paths("samples"), job.unkeyed["proof"])
    sizes = [fixed_batch(specs)] if fixed_batch(specs) else [1, samples.count - 1]
    report = fold_model(
        job.inputs["export"] / MODEL_FILE,
        job.out / MODEL_FILE,
        inputs=specs,
        outputs={name: tuple(shape) for name, shape in job.params["outputs"].items()},
        minimum_opset=job.params["minimum_opset"],
        feeds=list(samples.batches([s for s in sizes if s])),
    )
    for fallback in report.fallbacks:
        job.echo(f"folding by {fallback.strategy} was given up: {fallback.why}")
    job.write(report)
