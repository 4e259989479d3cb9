"""Lowered decoder + target → engine with its tokenizer and a sidecar; on a CPU the engine then generates once.

For a GPU the artifact holds an engine for each batch and number of tokens that the recipe's situations want.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from engineworks.engines.backends import backend
from engineworks.engines.backends.base import Builder, BuildReport, BuildRequest, PartsRunner
from engineworks.engines.decoder.generation import TOKENIZER_FILE
from engineworks.engines.decoder.open import generate_once
from engineworks.engines.decoder.parts import Part, parts_for
from engineworks.engines.sidecar import DecoderFacts, Sidecar, StoredPart
from engineworks.errors import BuildError, UnsupportedError
from engineworks.host.file_digests import digest_file
from engineworks.model.decoder.interface import DecoderInterface
from engineworks.model.decoder.static import fix_shape
from engineworks.model.onnx_files import MODEL_FILE, load_model, model_files, save_model
from engineworks.recipe.datasets.decoder_text import TEMPLATE_FILE
from engineworks.recipe.datasets.tokenize import load_tokenizer
from engineworks.recipe.recipe import W4A8
from engineworks.steps.build import build_request, builder_of
from engineworks.steps.decoder.fused_model import source_model
from engineworks.steps.job import StepJob


def run(job: StepJob) -> None:
    build, run, parts = builder_of(job), backend(job.params["target"]["backend"]), list[Part]()
    decoder = job.params["decoder"]
    with source_model(job, contrib_operators=run.TRAITS.contrib_operators) as source:
        interface, request = source.interface, build_request(job, source.path)
        if isinstance(run, PartsRunner):
            parts = parts_for(decoder["streams"], decoder["prompts"], interface.context)
            report = _build_parts(job, build, request, interface, parts)
        else:
            report = build.build(request, job.echo)
            generate_once(job.out / report.file, interface, request.options, decoder["streams"])
    _copy_tokenizer(job)
    model = job.inputs["lower"] / MODEL_FILE
    job.write(Sidecar.of(request, report, job.params["target"], model, _facts(job, interface, parts)))


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


def _facts(job: StepJob, interface: DecoderInterface, parts: list[Part]) -> DecoderFacts:
    return DecoderFacts(
        interface,
        computes="w4a8" if W4A8 in job.params["computes"] else job.params["computes"][-1],
        streams=tuple(job.params["decoder"]["streams"]),
        tokenizer_sha256=digest_file(job.out / TOKENIZER_FILE),
        stop=tuple(stop_tokens(job.path("tokenizer"))),
        parts=tuple(StoredPart(**vars(part), sha256=digest_file(job.out / part.file)) for part in parts),
    )


def _copy_tokenizer(job: StepJob) -> None:
    """Ship the tokenizer with the engine: only together do they make text."""
    load_tokenizer(job.path("tokenizer")).save(str(job.out / TOKENIZER_FILE))
    template = job.path("tokenizer") / TEMPLATE_FILE
    if template.is_file():
        shutil.copyfile(template, job.out / TEMPLATE_FILE)


_FILES = ("generation_config.json", "config.json")


def stop_tokens(folder: Path) -> list[int]:
    """Return the ids of end-of-sequence tokens: those that the model's configs name, else the tokenizer's own."""
    for name in _FILES:
        ids = _read(folder / name).get("eos_token_id")
        found = [ids] if isinstance(ids, int) else ids
        if isinstance(found, list) and found and all(isinstance(i, int) for i in found):
            return list(found)
    token = _read(folder / "tokenizer_config.json").get("eos_token")
    text = token.get("content") if isinstance(token, dict) else token
    found_id = load_tokenizer(folder).token_to_id(text) if isinstance(text, str) else None
    return [] if found_id is None else [int(found_id)]


def _read(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
