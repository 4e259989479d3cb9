"""An exported decoder and what its source gives for the same tokens → the largest error of a logit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from engineworks.engines.decoder.base import Tokens
from engineworks.engines.decoder.open import open_onnx_decoder
from engineworks.model.decoder.from_huggingface import proof_tokens
from engineworks.model.decoder.interface import DecoderInterface

PROMPT = 12
PROOF_ERROR = 2e-4
"""Largest difference of a logit from the model's own, relative to the logits' standard deviation. The families of the
tests stay below 2e-5; one that is wrong has lost a window, a scale or a rotation, and is off by 1e-2 and more."""


def export_error(model: Path, interface: DecoderInterface, expected: NDArray[np.float32]) -> float:
    """Return the largest difference of the model's logits for `proof_tokens`, relative to the expected ones' deviation:
    two prompts at once, then step by step, the second stream one position behind the first."""
    got, at = np.full_like(expected, np.nan), [0, 0]
    session = open_onnx_decoder(model, interface, len(at), {"spinning": False, "threads": 1})
    try:
        for new in _calls(proof_tokens(interface.vocabulary, interface.context)):
            for row, logits in session.step(new).items():
                got[row, at[row] : at[row] + len(logits)] = logits
                at[row] += len(logits)
    finally:
        session.close()
    return float(np.abs(got - expected).max() / max(float(expected.std()), 1e-12))


def _calls(tokens: NDArray[np.int64]) -> Iterator[dict[int, Tokens]]:
    """Yield new tokens by stream."""
    prompt, end = min(PROMPT, tokens.shape[1]), tokens.shape[1]
    yield {row: tokens[row, : prompt - row] for row in range(2) if prompt > row}
    for step in range(prompt, end + 1):
        yield {row: tokens[row, step - row : step - row + 1] for row in range(2) if 0 <= step - row < end}
