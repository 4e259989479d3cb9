"""ONNX files of onnxruntime-genai: open lengths of the cache, and operators that only ONNX Runtime knows."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest

from engineworks.errors import ModelError
from engineworks.model.decoder.interface import DECODER_FILE
from engineworks.model.onnx_files import MODEL_FILE, load_model
from engineworks.steps.decoder import export, fold
from engineworks.steps.decoder.made_feeds import read_decoder
from tests.genai_decoder import HEAD, write_genai_decoder


class Job(SimpleNamespace):
    def path(self, name: str) -> Path:
        return self.paths[name]

    def echo(self, line: str) -> None:
        self.lines.append(line)

    def write_json(self, name: str, value: Any) -> None:
        import json

        (self.out / name).write_text(json.dumps(value))

    def write(self, report: Any) -> None:
        self.report = report


def exported(folder: Path, model: Path, ties: dict[str, str]) -> Path:
    out = folder / "export"
    out.mkdir()
    decoder = {"context": 32, "cache": {}, "ties": ties}
    export.run(Job(params={"source": "onnx", "decoder": decoder}, paths={"source": model}, out=out, lines=[]))  # type: ignore[arg-type]
    return out


def without_heads(model: Path) -> Path:
    """The attention's own head count is gone, so that nothing says the cache's length."""
    found = onnx.load(model)
    for node in found.graph.node:
        for attribute in [a for a in node.attribute if a.name == "kv_num_heads"]:
            node.attribute.remove(attribute)
    onnx.save(found, model)
    return model


def test_the_attention_says_what_the_file_leaves_open(tmp_path: Path) -> None:
    out = exported(tmp_path, write_genai_decoder(tmp_path / "model.onnx"), {})
    assert {c.shape[-1] for c in read_decoder(out).caches} == {HEAD}


def test_a_length_that_nothing_says_is_asked_for_and_may_be_said(tmp_path: Path) -> None:
    model = without_heads(write_genai_decoder(tmp_path / "model.onnx"))
    with pytest.raises(ModelError, match=r"'past_key' has a dimension 'kv_cache_dim' whose length"):
        exported(tmp_path, model, {})
    (tmp_path / "said").mkdir()
    out = exported(tmp_path / "said", model, {"kv_cache_dim": "8", "total": "past + sequence"})
    face = read_decoder(out)
    assert ({c.shape[-1] for c in face.caches}, face.ties) == ({8}, {"total": ("past", "sequence")})


def test_norms_of_onnx_runtime_are_written_in_onnx(tmp_path: Path) -> None:
    out = exported(tmp_path, write_genai_decoder(tmp_path / "model.onnx"), {})
    folded = tmp_path / "fold"
    folded.mkdir()
    job = Job(inputs={"export": out}, out=folded, lines=[])
    fold.run(job)  # type: ignore[arg-type] # proves that the outputs are equal
    operators = Counter(node.op_type for node in load_model(folded / MODEL_FILE).graph.node)
    assert operators["SimplifiedLayerNormalization"] == 0
    assert operators["ReduceMean"] == 1
    assert "1 SimplifiedLayerNormalization of ONNX Runtime written in ONNX's own operators" in job.report.notes
    assert (folded / DECODER_FILE).is_file()
    assert all(np.isfinite(v) for v in job.report.max_abs.values())
