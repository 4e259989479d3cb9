"""Lowered ONNX + profiles + target → engine, with a sidecar that describes it."""

from __future__ import annotations

from pathlib import Path

from engineworks.engines.backends import builder
from engineworks.engines.backends.base import Builder, BuildRequest
from engineworks.engines.sidecar import Sidecar
from engineworks.errors import BuildError
from engineworks.model.onnx_files import MODEL_FILE
from engineworks.steps.job import StepJob
from engineworks.tensors import Profile, profile_from_json


def run(job: StepJob) -> None:
    build = builder_of(job)
    profiles = tuple(profile_from_json(p) for p in job.params["profiles"])
    request = build_request(job, job.inputs["lower"] / MODEL_FILE, profiles)
    job.write(Sidecar.of(request, build.build(request, job.echo), job.params["target"], request.model))


def builder_of(job: StepJob) -> Builder:
    """Return the backend that builds for the step's target. Raises `BuildError` where this host cannot."""
    target = job.params["target"]
    build = builder(target["backend"])
    if build is None:
        raise BuildError(f"{job.id}: backend '{target['backend']}' runs engines, it does not build them")
    why = build.why_not_build(target["compute_capability"])
    if why is not None:
        raise BuildError(f"{job.id}: cannot be built here: {why}")
    return build


def build_request(job: StepJob, model: Path, profiles: tuple[Profile, ...] = ()) -> BuildRequest:
    target = job.params["target"]
    return BuildRequest(
        model=model,
        out=job.out,
        precision=job.params["precision"],
        profiles=profiles,
        compute_capabilities=tuple(target["compute_capability"]),
        options=target["options"],
        computes=tuple(job.params.get("computes", ())),
        cache=job.path("cache") if "cache" in job.unkeyed else None,
        crashes=job.crashes,
    )
