"""The graph that a decoder's engine is built from: the lowered one, or one fused for ONNX Runtime and proved equal."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from engineworks.engines.decoder.base import Logits, Tokens
from engineworks.engines.decoder.open import open_onnx_decoder
from engineworks.errors import RunError
from engineworks.measure.decoder.situations import TOLERANCES, difference
from engineworks.model.decoder.fused import fuse_decoder
from engineworks.model.decoder.interface import DecoderInterface
from engineworks.model.onnx_files import MODEL_FILE, load_model, save_model
from engineworks.steps.decoder.made_feeds import read_decoder
from engineworks.steps.job import StepJob

PROMPTS, APPENDED = (12, 7), 3
"""Tokens of two prompts, which run together, and tokens that the first stream appends at once after two steps."""


@dataclass(frozen=True)
class SourceModel:
    """What is built. notes: why it is not fused."""

    path: Path
    interface: DecoderInterface
    notes: tuple[str, ...] = ()


@contextmanager
def source_model(job: StepJob, *, contrib_operators: bool) -> Iterator[SourceModel]:
    """Yield the fused graph, which is deleted afterwards; the lowered one where it cannot be fused, or where the fused
    one gives other logits. job: the step `build`."""
    lowered = SourceModel(job.inputs["lower"] / MODEL_FILE, read_decoder(job.inputs["lower"]))
    if not contrib_operators:
        yield lowered
        return
    with TemporaryDirectory(dir=job.out) as folder:
        fused = fused_model(lowered, Path(folder) / MODEL_FILE)
        problem = difference_of(lowered, fused, job.params["computes"][-1]) if fused else ""
        if problem:
            job.echo(problem)
        yield SourceModel(lowered.path, lowered.interface, (problem,)) if problem else fused or lowered


def fused_model(lowered: SourceModel, out: Path) -> SourceModel | None:
    """Write the fused graph; return None where nothing can be fused."""
    model = load_model(lowered.path)
    interface = fuse_decoder(model, lowered.interface)
    if interface is None:
        return None
    save_model(model, out)
    return SourceModel(out, interface)


def difference_of(lowered: SourceModel, fused: SourceModel, computes: str) -> str:
    """Return why the fused graph is not used, '' where its logits are the lowered one's."""
    expected = _logits(lowered)
    try:
        got = _logits(fused)
    except RunError as error:
        return f"the graph is not fused for ONNX Runtime: {error.message}"
    worst = max(float(difference(logits, wanted).max()) for logits, wanted in zip(got, expected, strict=True))
    if worst <= TOLERANCES[computes]:
        return ""
    return f"the graph is not fused for ONNX Runtime: its logits would differ by {worst:.2g} of their spread"


def _logits(model: SourceModel) -> list[Logits]:
    with closing(open_onnx_decoder(model.path, model.interface, len(PROMPTS), {"spinning": False})) as session:
        return [logits for tokens in _calls(model.interface) for logits in session.step(tokens).values()]


def _calls(interface: DecoderInterface) -> Iterator[dict[int, Tokens]]:
    """Yield calls of a session: two prompts, two steps, and some tokens more of one stream, as far as they fit."""
    rng, room = np.random.default_rng(0), interface.context
    for counts in (PROMPTS, (1, 1), (1, 1), (APPENDED,)):
        if max(counts) <= room:
            room -= max(counts)
            yield {stream: rng.integers(0, interface.vocabulary, count) for stream, count in enumerate(counts)}
