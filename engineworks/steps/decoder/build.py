"""Lowered decoder + target → engine with its tokenizer and a sidecar; on a CPU the engine then generates once.

For a GPU the artifact holds an engine for each batch and number of tokens that the recipe's situations want.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from engineworks.engines.backends import backend, builder
from engineworks.engines.backends.base import Builder, BuildReport, BuildRequest, PartsRunner
from engineworks.engines.decoder.generation import TOKENIZER_FILE
from engineworks.engines.decoder.parts import Part, parts_for
from engineworks.engines.decoder.trial import generate_once
from engineworks.engines.engine_files import LOG_FILE
from engineworks.engines.sidecar import Sidecar
from engineworks.errors import BuildError, UnsupportedError
from engineworks.host.file_digests import digest_file
from engineworks.model.decoder.interface import DecoderInterface
from engineworks.model.decoder.static import fix_shape
from engineworks.model.onnx_files import MODEL_FILE, load_model, model_files, save_model
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
    decoder, parts = job.params["decoder"], list[Part]()
    with source_model(job, contrib_operators=backend(target["backend"]).TRAITS.contrib_operators) as source:
        interface = source.interface
        request = BuildRequest(
            model=source.path,
            out=job.out,
            precision=job.params["precision"],
            profiles=(),
            compute_capabilities=tuple(target["compute_capability"]),
            options=target["options"],
            computes=tuple(job.params["computes"]),
            cache=job.path("cache") if "cache" in job.unkeyed else None,
            crashes=job.crashes,
        )
        if isinstance(backend(target["backend"]), PartsRunner):
            parts = parts_for(decoder["streams"], decoder["prompts"], interface.context)
            report = _build_parts(job, build, request, interface, parts)
        else:
            report = build.build(request, job.echo)
    if not parts:
        generate_once(job.out / report.file, interface, target["options"], decoder["streams"])
    _copy_tokenizer(job)
    sidecar = Sidecar.from_json(
        {
            "engine": report.file,
            "sha256": digest_file(job.out / report.file),
            "bytes": sum(f.stat().st_size for f in job.out.iterdir() if f.name != LOG_FILE),
            "precision": request.precision,
            "target": target,
            "inputs": [s.to_json() for s in report.inputs],
            "outputs": [s.to_json() for s in report.outputs],
            "profiles": [],
            "decoder": _decoder(job, interface, parts),
            "model_sha256": digest_file(job.inputs["lower"] / MODEL_FILE),
            "build_seconds": round(report.seconds, 3),
            "versions": dict(report.versions),
            "details": dict(report.details),
        },
        f"{job.id}: {Sidecar.FILE}",
    )
    job.write(sidecar)


def _build_parts(
    job: StepJob, build: Builder, request: BuildRequest, interface: DecoderInterface, parts: list[Part]
) -> BuildReport:
    """Build every part. Returns the first one's report, with the seconds of all, and what is known of each."""
    if interface.form != "in_place":
        raise UnsupportedError(
            f"{job.id}: its cache grows by concatenation, and a GPU's engines update one of fixed capacity",
            hint="export the model with a cache of fixed capacity and write_indices, or use target cpu",
        )
    reports, folder = list[BuildReport](), job.out / "part"
    (folder / "out").mkdir(parents=True)
    _lay_out(request.model, folder)
    for part in parts:
        job.echo(f"{part.batch} × {part.tokens} tokens")
        model = load_model(folder / MODEL_FILE, weights=False)
        fix_shape(model, interface, part.batch, part.tokens)
        (folder / MODEL_FILE).write_bytes(model.SerializeToString())
        try:
            report = build.build(replace(request, model=folder / MODEL_FILE, out=folder / "out"), job.echo)
        except BuildError as error:
            error.message = f"{part.batch} × {part.tokens} tokens: {error.message}"
            raise
        (folder / "out" / report.file).rename(job.out / part.file)
        reports.append(report)
    shutil.rmtree(folder)
    seconds, first = sum(r.seconds for r in reports), reports[0]
    known = {p.file: {"seconds": round(r.seconds, 3), **r.details} for p, r in zip(parts, reports, strict=True)}
    return replace(first, file=parts[0].file, seconds=seconds, details={**first.details, "parts": known})


def _lay_out(source: Path, folder: Path) -> None:
    """Write the model with its weights in a file beside it. They are not in the messages that the parts write: protobuf
    takes five times a message's size to write it."""
    others = model_files(source)[1:]
    model = load_model(source, weights=False)
    if not others:
        save_model(model, folder / MODEL_FILE, beside=True)
        return
    (folder / MODEL_FILE).write_bytes(model.SerializeToString())
    for file in others:
        try:
            os.link(file, folder / file.name)
        except OSError:  # another file system, or none with hard links
            shutil.copyfile(file, folder / file.name)


def _decoder(job: StepJob, interface: DecoderInterface, parts: list[Part]) -> dict[str, Any]:
    made = [{**part.to_json(), "sha256": digest_file(job.out / part.file)} for part in parts]
    return {
        "interface": interface.to_json(),
        "computes": W4A8 if W4A8 in job.params["computes"] else job.params["computes"][-1],
        "streams": job.params["decoder"]["streams"],
        "tokenizer_sha256": digest_file(job.out / TOKENIZER_FILE),
        "stop": stop_tokens(job.path("tokenizer")),
        **({"parts": made} if parts else {}),
    }


def _copy_tokenizer(job: StepJob) -> None:
    """Ship the tokenizer with the engine: only together do they make text."""
    load_tokenizer(job.path("tokenizer")).save(str(job.out / TOKENIZER_FILE))
    template = job.path("tokenizer") / TEMPLATE_FILE
    if template.is_file():
        shutil.copyfile(template, job.out / TEMPLATE_FILE)
