"""Lowered ONNX + profiles + target → engine, with a sidecar that describes it."""

from __future__ import annotations

from engineworks.engines.backends import builder
from engineworks.engines.backends.base import BuildRequest
from engineworks.engines.engine_files import LOG_FILE
from engineworks.engines.sidecar import Sidecar
from engineworks.errors import BuildError
from engineworks.host.file_digests import digest_file
from engineworks.model.onnx_files import MODEL_FILE
from engineworks.steps.step_job import StepJob
from engineworks.tensors import profile_from_json


def run(job: StepJob) -> None:
    target = job.params["target"]
    build = builder(target["backend"])
    if build is None:
        raise BuildError(f"{job.id}: backend '{target['backend']}' runs engines, it does not build them")
    why = build.why_not_build(target["compute_capability"])
    if why is not None:
        raise BuildError(f"{job.id}: cannot be built here: {why}")
    profiles = tuple(profile_from_json(p) for p in job.params["profiles"])
    request = BuildRequest(
        model=job.inputs["lower"] / MODEL_FILE,
        out=job.out,
        precision=job.params["precision"],
        profiles=profiles,
        compute_capabilities=tuple(target["compute_capability"]),
        options=target["options"],
        computes=tuple(job.params.get("computes", ())),
        cache=job.path("cache") if "cache" in job.unkeyed else None,
        crashes=job.crashes,
    )
    report = build.build(request, job.echo)
    engine = job.out / report.file
    sidecar = Sidecar.from_json(
        {
            "engine": report.file,
            "sha256": digest_file(engine),
            "bytes": sum(f.stat().st_size for f in job.out.iterdir() if f.name != LOG_FILE),
            "precision": request.precision,
            "target": target,
            "inputs": [s.to_json() for s in report.inputs],
            "outputs": [s.to_json() for s in report.outputs],
            "profiles": [p.to_json() for p in profiles],
            "model_sha256": digest_file(request.model),
            "build_seconds": round(report.seconds, 3),
            "versions": dict(report.versions),
            "details": dict(report.details),
        },
        f"{job.id}: {Sidecar.FILE}",
    )
    job.write(sidecar)
