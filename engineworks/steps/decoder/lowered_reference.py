"""Lowered decoder → how far one rounding moves its logits, which sets the tolerance of the situations.

The model runs as written in ONNX Runtime, once as it is and once with noise of one rounding (`model.lower.rounding`). A
batch of another size, or a prompt instead of single tokens, computes the same sums by other kernels: their answers may
differ by as much. Of w4a8 one rounding is that of activations to int8: a sum that is off by an fp32 rounding puts some
of them on another step, which puts more of the next layer's there, until they are rounded independently of each other.
So the noisy run is ONNX Runtime's own with int8 activations.
"""

from __future__ import annotations

import textwrap
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engineworks.engines.backends import onnxruntime as backend
from engineworks.engines.backends.base import Session
from engineworks.errors import RunError
from engineworks.measure.decoder.report import LoweredDecoder
from engineworks.measure.decoder.situations import difference
from engineworks.model.decoder.interface import DecoderInterface
from engineworks.model.lower.rounding import graph_with_rounding
from engineworks.model.onnx_files import MODEL_FILE
from engineworks.steps.decoder.made_feeds import Feeds, prompt_feeds, read_decoder
from engineworks.steps.decoder.texts import read_texts, situation_texts
from engineworks.steps.job import StepJob


def run(job: StepJob) -> None:
    model, interface = job.inputs["lower"] / MODEL_FILE, read_decoder(job.inputs["lower"])
    moved, usual, why = None, None, ""
    try:
        if job.crashes:
            raise RunError(job.crashes[0])
        rows = situation_texts(read_texts(job.path("evaluation")), interface.context)
        errors = _errors(model, interface, prompt_feeds(interface, rows), int8_activations="dynamic" in job.params)
        if np.isfinite(errors).all():
            moved, usual = float(errors.max()), float(np.sqrt(np.square(errors).mean()))
    except RunError as error:
        why = textwrap.shorten(error.message.replace(str(model), "the lowered model"), 200, placeholder=" …")
        job.echo(f"how far one rounding moves the logits is not known: {why}")
    job.write(LoweredDecoder(moved, usual, why))


def _errors(model: Path, interface: DecoderInterface, feeds: Feeds, *, int8_activations: bool) -> NDArray[np.float64]:
    """Return by how much each position's logits move, relative to their spread, f64 [positions]; inf where a logit is
    not finite."""
    plain = _logits(backend.load_as_written(model), interface, feeds)
    if int8_activations:
        session = backend.load_with_int8_activations(model)
    else:
        session = backend.load_as_written(model, graph=graph_with_rounding(model)[0])
    return difference(_logits(session, interface, feeds), plain)


def _logits(session: Session, interface: DecoderInterface, feeds: Feeds) -> NDArray[Any]:
    """Return the logits of all rows, [rows · sequence, vocabulary], and close the session."""
    with closing(session):
        return session.run(feeds)[interface.logits].reshape(-1, interface.vocabulary)
