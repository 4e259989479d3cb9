"""`init` recognises decoders by their cache or family, and the recipe that it writes can be planned."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from growing_decoder import write_growing_decoder

from engineworks.commands.init.decoder import decoder_in_onnx
from engineworks.commands.init.draft import InitOptions, RawTensor
from engineworks.commands.init.write import write_recipe
from engineworks.host.file_digests import FileDigests
from engineworks.plan.plan import plan_recipe
from engineworks.settings import read_settings
from engineworks.store.store import Store

MODEL = Path("recipes/models/tiny-decoder").resolve()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    for name in ("tokenizer.json", "tokenizer_config.json", "model.onnx"):
        shutil.copyfile(MODEL / name, tmp_path / name)
    shutil.copytree(MODEL, tmp_path / "hf")
    write_growing_decoder(tmp_path / "growing.onnx")
    (tmp_path / "text.txt").write_text("You may reproduce and distribute copies of the Work. " * 8)
    (tmp_path / "text.jsonl").write_text('{"text": "You may reproduce and distribute copies of the Work."}\n' * 3)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("model", "text", "context", "pairs"),
    [("model.onnx", "text.txt", 96, 4), ("growing.onnx", "text.jsonl", 1024, 2), ("hf", "text.txt", 96, 0)],
)
def test_a_decoders_recipe_can_be_planned(folder, model, text, context, pairs):
    written = write_recipe(
        InitOptions(model=model, name="made", evaluation=text), folder / "made.yaml", read_settings()
    )
    decoder = written.loaded.recipe.model.decoder
    assert (decoder.context, len(decoder.cache)) == ((context,), pairs)
    assert decoder.ties == ({"total": "past + sequence"} if model == "growing.onnx" else {})
    plan = plan_recipe(written.loaded, Store(folder / "store"), FileDigests(None))
    assert {"reference", "build", "compare", "measure"} <= {step.kind for step in plan.steps.values()}


def test_a_decoder_without_texts_is_told_how(folder):
    written = write_recipe(InitOptions(model="growing.onnx", name="made"), folder / "made.yaml", read_settings())
    assert written.loaded.recipe.model.decoder is None
    assert any("--evaluation FILE.txt" in note for note in written.notes)


def test_a_cache_over_all_layers_in_one_tensor_is_found():
    """As in a GPT with one tensor of keys: [layers, batch, heads, past, size]."""
    pasts = [RawTensor(f"past_{k}", "float32", (4, "s6", 4, "s26", 32)) for k in "kv"]
    presents = [RawTensor(f"present_{k}", "float32", (4, "s6", 4, "s26 + s70", 32)) for k in "kv"]
    ids, logits = RawTensor("input_ids", "int64", ("s6", "s70")), RawTensor("logits", "float32", ("s6", "s70", 81))
    found = decoder_in_onnx([ids, *pasts], [logits, *presents])
    assert found.cache == {"past_k": "present_k", "past_v": "present_v"}
    assert not found.fixed
    assert decoder_in_onnx([ids], [logits]) is None
