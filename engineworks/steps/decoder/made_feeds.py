"""Feeds that exercise a decoder's graph as it is used: a prompt into an empty cache, then single tokens."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engineworks.model.decoder.interface import DECODER_FILE, DecoderInterface, check_shapes
from engineworks.model.onnx_files import graph_outputs, load_model

Feeds = dict[str, NDArray[Any]]


def read_decoder(folder: Path) -> DecoderInterface:
    """Return the interface that an earlier step wrote."""
    return DecoderInterface.from_json(json.loads((folder / DECODER_FILE).read_text(encoding="utf-8")))


def prompt_feeds(interface: DecoderInterface, rows: Sequence[NDArray[np.int64]]) -> Feeds:
    """Return feeds of a prompt of each row, all cut to the shortest, into an empty cache."""
    length = min(len(row) for row in rows)
    ids = np.stack([row[:length] for row in rows])
    past = interface.context if interface.form == "in_place" else 0
    return _feeds(interface, ids, 0) | {
        c.input: np.zeros(c.concrete(len(rows), past), c.dtype) for c in interface.caches
    }


def step_feeds(interface: DecoderInterface, before: Feeds, made: dict[str, NDArray[Any]], ids: Any) -> Feeds:
    """Return feeds of the next tokens, ids [batch, n]. before, made: the last run's feeds and its outputs by name."""
    cache = interface.caches[0]
    grown = made[cache.output].shape[cache.length]
    past = int(before[interface.positions][0]) + before[interface.ids].shape[1] if interface.positions else grown
    return _feeds(interface, ids, past) | {c.input: made[c.output] for c in interface.caches}


def _feeds(interface: DecoderInterface, ids: NDArray[np.int64], past: int) -> Feeds:
    batch, count = ids.shape
    feeds: Feeds = {interface.ids: ids}
    if interface.positions:
        feeds[interface.positions] = np.full(batch, past, np.int64)
    if interface.mask:
        feeds[interface.mask] = np.ones((batch, interface.mask_length(past, count)), np.int64)
    if interface.position_ids:
        feeds[interface.position_ids] = np.broadcast_to(past + np.arange(count), ids.shape).astype(np.int64)
    return feeds


def example_feeds(model: Path, interface: DecoderInterface, rows: Sequence[NDArray[np.int64]]) -> list[Feeds]:
    """Return feeds of a prompt and of the step after it. model: an ONNX file, which runs once for the cache."""
    from engineworks.engines.backends import onnxruntime as backend

    half = [row[: max(1, len(row) - 1)] for row in rows]
    prompt = prompt_feeds(interface, half)
    count = prompt[interface.ids].shape[1]
    outputs = graph_outputs(load_model(model, weights=False))
    session = backend.load_as_written(model)  # its weights stay in the file: an optimized session copies them
    with closing(session):
        made = dict(session.run(prompt))
    check_shapes(interface.ties, outputs, made, 0, count)
    ids = np.stack([row[count : count + 1] for row in rows])
    return [prompt, step_feeds(interface, prompt, made, ids)]
