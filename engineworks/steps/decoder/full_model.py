"""The source model in fp32, recomputed in full for every token, without a cache: what engines are compared with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engineworks.engines.decoder.open import open_onnx_decoder
from engineworks.model.decoder.from_huggingface import full_logits, load_decoder
from engineworks.model.decoder.interface import DecoderInterface
from engineworks.model.export.from_huggingface import find_folder
from engineworks.steps.step_job import StepJob

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
