"""Lowered decoder + target → engine with its tokenizer and a sidecar; then the engine generates once."""

from __future__ import annotations

import shutil
from typing import Any

from engineworks.engines.backends import backend, builder
from engineworks.engines.backends.base import BuildRequest
from engineworks.engines.decoder.generation import TOKENIZER_FILE
from engineworks.engines.decoder.trial import generate_once
from engineworks.engines.engine_files import LOG_FILE, SIDECAR_FILE
from engineworks.errors import BuildError
from engineworks.fingerprint import digest_file
from engineworks.model.decoder.interface import DecoderInterface
from engineworks.model.onnx_files import MODEL_FILE
from engineworks.recipe.datasets.decoder_text import TEMPLATE_FILE
from engineworks.recipe.datasets.tokenize import load_tokenizer
from engineworks.recipe.recipe import W4A8
from engineworks.steps.decoder.fused_model import source_model
from engineworks.steps.decoder.stop_tokens import stop_tokens
from engineworks.steps.step_job import StepJob


def run(job: StepJob) -> None:
    target = job.params["target"]
    build = builder(target["backend"])
    if build is None:
        raise BuildError(f"{job.id}: backend '{target['backend']}' runs engines, it does not build them")
    why = build.why_not_build(target["compute_capability"])
    if why is not None:
        raise BuildError(f"{job.id}: cannot be built here: {why}")
    with source_model(job, contrib_operators=backend(target["backend"]).TRAITS.contrib_operators) as source:
        request = BuildRequest(
            model=source.path,
            out=job.out,
            precision=job.params["precision"],
            profiles=(),
            options=target["options"],
            computes=tuple(job.params["computes"]),
            crashes=job.crashes,
        )
        report = build.build(request, job.say)
    interface = source.interface
    generate_once(job.out / report.file, interface, target["options"], job.params["decoder"]["streams"])
    _copy_tokenizer(job)
    job.write_json(
        SIDECAR_FILE,
        {
            "engine": report.file,
            "sha256": digest_file(job.out / report.file),
            "bytes": sum(f.stat().st_size for f in job.out.iterdir() if f.name != LOG_FILE),
            "precision": request.precision,
            "target": target,
            "inputs": [s.to_json() for s in report.inputs],
            "outputs": [s.to_json() for s in report.outputs],
            "profiles": [],
            "decoder": _decoder(job, interface),
            "model_sha256": digest_file(job.inputs["lower"] / MODEL_FILE),
            "build_seconds": round(report.seconds, 3),
            "versions": dict(report.versions),
            "details": dict(report.details),
        },
    )


def _decoder(job: StepJob, interface: DecoderInterface) -> dict[str, Any]:
    return {
        "interface": interface.to_json(),
        "computes": W4A8 if W4A8 in job.params["computes"] else job.params["computes"][-1],
        "streams": job.params["decoder"]["streams"],
        "tokenizer_sha256": digest_file(job.out / TOKENIZER_FILE),
        "stop": stop_tokens(job.path("tokenizer")),
    }


def _copy_tokenizer(job: StepJob) -> None:
    """Ship the tokenizer with the engine: only together do they make text."""
    load_tokenizer(job.path("tokenizer")).save(str(job.out / TOKENIZER_FILE))
    template = job.path("tokenizer") / TEMPLATE_FILE
    if template.is_file():
        shutil.copyfile(template, job.out / TEMPLATE_FILE)
