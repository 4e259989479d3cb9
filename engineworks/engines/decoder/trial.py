"""The first tokens of a new engine: a crash or an error here is the build's, not a later step's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from engineworks.engines.decoder.open import open_onnx_decoder
from engineworks.model.decoder.interface import DecoderInterface


def generate_once(
    engine: Path, interface: DecoderInterface, options: Mapping[str, object], streams: Sequence[int]
) -> None:
    """Run a prompt of two tokens and one step in the largest number of streams. Raises `RunError`."""
    session = open_onnx_decoder(engine, interface, max(streams), options)
    try:
        prompt = np.zeros(min(2, interface.context), np.int64)
        session.step(dict.fromkeys(range(session.streams), prompt))
        if interface.context > len(prompt):
            session.next_step(np.zeros(session.streams, np.int64))
    finally:
        session.close()
