"""Tied dimensions: what a sum means, and that a run disproves a wrong one."""

from __future__ import annotations

import numpy as np
import pytest
from growing_decoder import write_growing_decoder

from engineworks.errors import ModelError
from engineworks.model.decoder.interface import DecoderInterface, read_interface
from engineworks.model.onnx_files import graph_inputs, graph_outputs, load_model
from engineworks.steps.decoder.made_feeds import example_feeds
from engineworks.tensors import TensorSpec

ROWS = [np.arange(6, dtype=np.int64)]


@pytest.fixture
def model(tmp_path):
    return write_growing_decoder(tmp_path / "growing.onnx")


def interface(path, ties):
    model = load_model(path, weights=False)
    return read_interface(graph_inputs(model), graph_outputs(model), 96, {}, ties)


def test_a_tie_that_holds_runs(model):
    face = interface(model, {"total": "past + sequence"})
    assert face.ties == {"total": ("past", "sequence")}
    assert DecoderInterface.from_json(face.to_json()) == face
    assert len(example_feeds(model, face, ROWS)) == 2


def test_a_tie_that_does_not_hold_is_refused(model):
    with pytest.raises(ModelError, match="the tie of 'total' does not hold: 'present_k' has 5 there for 0 positions and 5 new tokens, not 6"):  # fmt: skip
        example_feeds(model, interface(model, {"total": "past + sequence + 1"}), ROWS)


def test_a_mask_has_the_length_of_its_tie():
    """A mask over the old positions alone, as some exports have it."""
    ids, mask = TensorSpec("input_ids", "int64", ("b", "s")), TensorSpec("attention_mask", "int64", ("b", "m"))
    past, present = (TensorSpec(n, "float32", ("b", 1, d, 16)) for n, d in (("past_k", "p"), ("present_k", "t")))
    logits = TensorSpec("logits", "float32", ("b", "s", 24))
    lengths = [
        read_interface([ids, mask, past], [logits, present], 96, {}, ties).mask_length(7, 2)
        for ties in ({}, {"m": "p"}, {"m": "p + 1"})
    ]
    assert lengths == [9, 7, 8]
