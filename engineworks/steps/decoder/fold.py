"""Exported decoder → folded decoder, verified on a prompt and on the step after it."""

from __future__ import annotations

import shutil

import numpy as np

from engineworks.model.decoder.interface import DECODER_FILE
from engineworks.model.fold.fold import fold_model
from engineworks.model.onnx_files import MODEL_FILE, graph_inputs, load_model
from engineworks.steps.decoder.made_feeds import example_feeds, read_decoder
from engineworks.steps.job import StepJob

PROOF_TOKENS = 9


def run(job: StepJob) -> None:
    source = job.inputs["export"]
    interface = read_decoder(source)
    count = min(PROOF_TOKENS, interface.context)
    rows = list(np.random.default_rng(0).integers(0, interface.vocabulary, (1, count)))  # the proof tries 2 as well
    report = fold_model(
        source / MODEL_FILE,
        job.out / MODEL_FILE,
        inputs=graph_inputs(load_model(source / MODEL_FILE, weights=False)),
        outputs=None,
        minimum_opset=13,
        feeds=example_feeds(source / MODEL_FILE, interface, rows),
    )
    shutil.copyfile(source / DECODER_FILE, job.out / DECODER_FILE)
    for fallback in report.fallbacks:
        job.echo(f"folding by {fallback.strategy} was given up: {fallback.why}")
    job.write(report)
