"""The stored decoder vs the reference: texts, continuations, and every situation that a stream meets."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing

import numpy as np
from numpy.typing import NDArray

from engineworks.engines.backends.base import Serving
from engineworks.engines.decoder.base import DecoderSession, Tokens
from engineworks.engines.decoder.open import open_decoder
from engineworks.engines.decoder.parts import Part
from engineworks.engines.verified import VerifiedEngine, verified_engine
from engineworks.measure.accuracy import OutputComparison
from engineworks.measure.accuracy_report import Accuracy, MetricValues
from engineworks.measure.decoder.report import Continuation, DecoderAccuracy, LoweredDecoder, Situation
from engineworks.measure.decoder.situations import worst_of
from engineworks.measure.decoder.texts import compare_texts, parting, token_metrics, why_parted
from engineworks.recipe.datasets.tokenize import load_tokenizer
from engineworks.steps.decoder.reference import Reference, kept_positions
from engineworks.steps.decoder.situations import Situations
from engineworks.steps.decoder.texts import STREAMS, Texts, read_texts, situation_texts
from engineworks.steps.job import StepJob


def run(job: StepJob) -> None:
    texts, reference = read_texts(job.path("evaluation")), Reference(job.inputs["reference"])
    with verified_engine(job.inputs["build"]) as engine:
        decoder = engine.sidecar.decoder
        assert decoder is not None  # the plan chose this step for a decoder
        first, *others = _session_sizes(decoder.parts, job.params["decoder"]["streams"])
        with closing(_open(job, engine, first)) as session:
            lowered = LoweredDecoder.read(job.inputs["lowered"])
            comparison, metric, usual_error = _texts(session, texts, reference, lowered.usual or 0.0)
            prompts = _prompts(session, texts.prompts, reference, usual_error, job)
            found = [_situations(session, texts, reference, comparison)]
        for streams in others:
            with closing(_open(job, engine, streams)) as session:
                found.append(_situations(session, texts, reference, comparison))
    situations = {name: worst_of([f[name] for f in found if name in f]) for name in found[0]}
    outputs = {decoder.interface.logits: comparison.result()}
    made = DecoderAccuracy(decoder.computes, situations, prompts, usual_error, lowered.moved)
    job.write(Accuracy(outputs, metric, len(texts.texts), (1,), decoder=made))


def _open(job: StepJob, engine: VerifiedEngine, streams: int) -> DecoderSession:
    return open_decoder(engine, job.params["target"], streams, serving=Serving.from_json(job.params["serving"]))


def _session_sizes(parts: Sequence[Part], asked: Sequence[int]) -> list[int]:
    """Return the numbers of streams whose sessions run everything that the engine serves, the largest first: one, or
    one for each part that steps several streams, because a session takes the largest part that fits."""
    sizes = {max(STREAMS, part.batch) for part in parts if part.batch > 1} if parts else {max(STREAMS, *asked)}
    return sorted(sizes or {STREAMS}, reverse=True)


def _texts(
    session: DecoderSession, texts: Texts, reference: Reference, rounding: float
) -> tuple[OutputComparison, MetricValues, float]:
    """Return the comparison of whole logits, the perplexity's figures, and the root mean square error of a logit.

    rounding: what one rounding moves a position's logits by, relative to their spread. A token alone is computed by
    other kernels than a whole text, so the error is at least that.
    """
    comparison, own, wanted = OutputComparison(0), [], []
    squares, spread, count = 0.0, 0.0, 0
    for index, text in enumerate(texts.texts):
        session.reset()
        logits = session.step({0: text})[0]
        own.append(token_metrics(logits, text))
        wanted.append(reference.values(index))
        kept = reference.logits(index)
        if kept is not None:
            got = logits[kept_positions(len(text))]
            comparison.add(got, kept)
            error = got.astype(np.float64) - kept
            squares, count = squares + float(np.square(error).sum()), count + error.size
            spread += float(np.square(kept - kept.mean(axis=-1, keepdims=True)).sum())
    usual = float(np.sqrt(max(squares, rounding**2 * spread) / count)) if count and np.isfinite(squares) else 0.0
    return comparison, compare_texts(own, wanted).metric(), usual


def _prompts(
    session: DecoderSession, prompts: Sequence[Tokens], reference: Reference, usual_error: float, job: StepJob
) -> tuple[Continuation, ...]:
    tokenizer = load_tokenizer(job.inputs["build"])
    found = []
    for index, prompt in enumerate(prompts):
        wanted = reference.continuation(index)
        tokens = generate(session, prompt, len(wanted.tokens))
        parted = parting(tokens, wanted.tokens.tolist())
        gap = None if parted is None else _gap(wanted.candidates[parted], wanted.logits[parted], tokens[parted])
        found.append(
            Continuation(
                prompt=tokenizer.decode(prompt.tolist()), text=tokenizer.decode(tokens),
                reference_text=tokenizer.decode(wanted.tokens.tolist()), engine=tuple(tokens),
                reference=tuple(wanted.tokens.tolist()), parted=parted, gap=gap,
                same_text=tokenizer.decode(tokens[:parted]) if parted is not None else None,
                why="" if parted is None else why_parted(gap, usual_error),
            )
        )  # fmt: skip
    return tuple(found)


def generate(session: DecoderSession, prompt: Tokens, new: int) -> list[int]:
    """Return `new` tokens, each the most probable one, in stream 0."""
    session.reset()
    logits, tokens = session.step({0: prompt})[0][-1], list[int]()
    while True:
        tokens.append(int(logits.argmax()))
        if len(tokens) == new:
            return tokens
        logits = session.step({0: np.array(tokens[-1:], np.int64)})[0][-1]


def _gap(candidates: NDArray[np.int64], logits: NDArray[np.float32], token: int) -> float | None:
    """Return by how much fp32 prefers its own token to the engine's; None where that is not among the candidates."""
    at = np.flatnonzero(candidates == token)
    return float(logits[0] - logits[at[0]]) if len(at) else None


def _situations(
    session: DecoderSession, texts: Texts, reference: Reference, comparison: OutputComparison
) -> dict[str, Situation]:
    """Return every situation. The end of the context is compared with the reference too, by `comparison`."""
    situations = Situations(session, situation_texts(texts, session.interface.context), texts.long)
    found, expected = situations.run(), reference.end()
    at_end, logits = situations.end(len(expected))
    comparison.add(logits, expected)
    return found | at_end
