"""An export is compared with its source, step by step, and refused if it is another model."""

from __future__ import annotations

import numpy as np
import pytest

from engineworks.engines.decoder.open import open_onnx_decoder
from engineworks.errors import ModelError
from engineworks.model.decoder.from_huggingface import EXPECTED_FILE, proof_tokens
from engineworks.model.decoder.interface import read_interface
from engineworks.model.onnx_files import MODEL_FILE, graph_inputs, graph_outputs, load_model
from engineworks.steps.decoder.export import prove
from tests.growing_decoder import write_growing_decoder


def exported(folder, context):
    """Return the interface of a decoder in `folder`, and its own logits of all proof tokens at once."""
    model = load_model(write_growing_decoder(folder / MODEL_FILE), weights=False)
    interface = read_interface(graph_inputs(model), graph_outputs(model), context, {})
    session = open_onnx_decoder(folder / MODEL_FILE, interface, 2, {"threads": 1, "spinning": False})
    made = session.step(dict(enumerate(proof_tokens(interface.vocabulary, context))))
    session.close()
    return interface, np.stack([made[0], made[1]])


@pytest.mark.parametrize("context", [1, 2, 12, 13, 64])
def test_an_export_that_is_right(context, tmp_path):
    interface, expected = exported(tmp_path, context)
    expected.tofile(tmp_path / EXPECTED_FILE)
    assert prove(tmp_path, interface, "Llama") < 2e-5
    assert not (tmp_path / EXPECTED_FILE).exists()


@pytest.mark.parametrize(("row", "position"), [(0, 3), (1, 11), (0, 19), (1, 19)])
def test_an_export_that_is_wrong_at_one_position(row, position, tmp_path):
    interface, expected = exported(tmp_path, 64)
    expected[row, position] *= 1.1
    expected.tofile(tmp_path / EXPECTED_FILE)
    with pytest.raises(ModelError, match="the export of this Llama model is not right"):
        prove(tmp_path, interface, "Llama")
