"""Source in fp32 → what it predicts on every text, and how it continues every prompt."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from engineworks.engines.decoder.open import open_onnx_decoder
from engineworks.measure.decoder.texts import TokenMetrics, token_metrics
from engineworks.model.decoder.from_huggingface import full_logits, load_decoder
from engineworks.model.decoder.interface import DecoderInterface
from engineworks.model.export.from_huggingface import find_folder
from engineworks.recipe.datasets.rows import ArchiveWriter
from engineworks.recipe.npz import NpzReader
from engineworks.steps.decoder.made_feeds import read_decoder
from engineworks.steps.decoder.texts import Tokens, read_texts
from engineworks.steps.job import StepJob

OUTPUTS_FILE = "reference.npz"

KEPT_TEXTS, KEPT_ROWS = 8, 8
"""Of so many texts, the logits of so many positions are kept whole, for cosine and largest difference."""

KEPT_AT_END = 4
CANDIDATES = 64
"""Logits kept of each generated token, largest first: they tell a near tie from an error."""


@dataclass(frozen=True)
class Continuation:
    """A prompt continued greedily. tokens: [new]. candidates, logits: [new, CANDIDATES], largest first."""

    tokens: NDArray[np.int64]
    candidates: NDArray[np.int64]
    logits: NDArray[np.float32]


def run(job: StepJob) -> None:
    interface = read_decoder(job.inputs["fold"])
    texts, model = read_texts(job.path("evaluation")), open_full_model(job, interface)
    with ArchiveWriter(job.out / OUTPUTS_FILE) as archive:
        for index, text in enumerate(texts.texts):
            logits = model(text)
            values = token_metrics(logits, text)
            for name in ("nll", "best", "margin"):
                archive.write(f"text{index}/{name}", getattr(values, name))
            if index < KEPT_TEXTS:
                archive.write(f"text{index}/logits", logits[kept_positions(len(text))])
        archive.write("long/logits", model(texts.long)[-KEPT_AT_END:])
        for index, prompt in enumerate(texts.prompts):
            made = _continue(model, prompt, min(job.params["new"], interface.context - len(prompt)))
            archive.write(f"prompt{index}/tokens", made.tokens)
            archive.write(f"prompt{index}/candidates", made.candidates)
            archive.write(f"prompt{index}/logits", made.logits)
            job.echo(f"prompt {index + 1}: {len(made.tokens)} tokens, each from all before it")
    job.write_json("reference.json", {"texts": len(texts.texts), "prompts": len(texts.prompts)})


def kept_positions(length: int) -> NDArray[np.int64]:
    """Return the positions of a text whose logits are kept: evenly spread, the last one among them."""
    count = min(KEPT_ROWS, length)
    return np.array([(i + 1) * length // count - 1 for i in range(count)], np.int64)


def _continue(model: FullModel, prompt: Tokens, new: int) -> Continuation:
    tokens, kept, values = list(prompt), [], []
    for _ in range(new):
        last = model(np.array(tokens, np.int64))[-1]
        count = min(CANDIDATES, len(last))
        best = np.argsort(-last, kind="stable")[:count]
        kept.append(best.astype(np.int64))
        values.append(last[best].astype(np.float32))
        tokens.append(int(best[0]))
    return Continuation(np.array(tokens[len(prompt) :], np.int64), np.array(kept), np.array(values, np.float32))


class Reference:
    """Reads what `run` wrote."""

    def __init__(self, folder: Path) -> None:
        self._archive = NpzReader(folder / OUTPUTS_FILE)

    def values(self, text: int) -> TokenMetrics:
        read: Any = self._archive.read
        return TokenMetrics(*(read(f"text{text}/{name}") for name in ("nll", "best", "margin")))

    def logits(self, text: int) -> NDArray[np.float32] | None:
        """Return logits [kept, vocabulary] at `kept_positions`; None for a text of which none are kept."""
        name = f"text{text}/logits"
        return self._floats(name) if name in self._archive.names else None

    def end(self) -> NDArray[np.float32]:
        """Return the logits of the last KEPT_AT_END positions of the text that fills the context."""
        return self._floats("long/logits")

    def _floats(self, name: str) -> NDArray[np.float32]:
        return cast("NDArray[np.float32]", self._archive.read(name))

    def continuation(self, prompt: int) -> Continuation:
        read: Any = self._archive.read
        return Continuation(*(read(f"prompt{prompt}/{name}") for name in ("tokens", "candidates", "logits")))


FullModel = Callable[[NDArray[np.int64]], NDArray[np.float32]]
"""Tokens [n] → logits [n, vocabulary] of all of them, from nothing but the tokens."""


def open_full_model(job: StepJob, interface: DecoderInterface) -> FullModel:
    """Open the recipe's source: transformers' own model, or the ONNX file as it came."""
    return _SOURCES[job.params["source"]](job, interface)


def _huggingface(job: StepJob, interface: DecoderInterface) -> FullModel:
    del interface
    model: Any = load_decoder(find_folder(str(job.path("source")), job.path("folder")))
    return lambda tokens: full_logits(model, tokens[None])[0]


def _onnx(job: StepJob, interface: DecoderInterface) -> FullModel:
    session = open_onnx_decoder(Path(job.path("source")), interface, 1, {"spinning": False})

    def run(tokens: NDArray[np.int64]) -> NDArray[np.float32]:
        session.reset()  # an empty cache: nothing is known but the tokens
        return session.step({0: tokens})[0]

    return run


_SOURCES: Mapping[str, Callable[[StepJob, DecoderInterface], FullModel]] = {"huggingface": _huggingface, "onnx": _onnx}
