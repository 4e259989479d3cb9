"""Peers that generate: what a recipe of a decoder plans with --compare, and that they run and are right."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from engineworks.host.file_digests import FileDigests
from engineworks.measure.latency import BRIEF
from engineworks.plan.plan import plan_recipe
from engineworks.recipe.load import load_recipe
from engineworks.steps.job import main
from engineworks.store.store import Store

PEERS = ("pytorch", "ort-cpu", "ort-cuda", "genai")


def planned(recipe, folder):
    plan = plan_recipe(
        load_recipe(recipe), Store(folder / "store"), FileDigests(None), only="*/fp32/cpu", compare=PEERS
    )
    return plan, {peer.id.rpartition("/")[2]: peer for peer in plan.peers}


def run(plan, kinds, folder):
    """Run the steps of these kinds in this process; return their folders by id."""
    outs = {}
    for key, step in plan.steps.items():
        if step.kind in kinds:
            outs[key] = folder / key
            outs[key].mkdir()
            inputs = {role: str(outs[k]) for role, k in step.inputs.items()}
            unkeyed, params = (json.loads(json.dumps(dict(d), default=str)) for d in (step.unkeyed, step.params))
            main({"kind": step.kind, "id": step.id, "params": params, "inputs": inputs, "unkeyed": unkeyed, "out": str(outs[key])})  # fmt: skip
    return {plan.steps[key].id: out for key, out in outs.items()}


def check(report):
    shape = report["shapes"]["chat"]
    assert shape["tokens_per_s"] > 0
    assert shape["latency_ms_p50"] > 0
    assert report["outputs"]["logits"]["cosine"] > 0.9999


def test_an_onnx_file_has_one_peer_and_reasons_for_the_others(tmp_path, monkeypatch):
    monkeypatch.setattr("engineworks.steps.decoder.measure.Sampling", lambda **_: BRIEF)
    plan, peers = planned(Path("recipes/tiny-decoder.yaml"), tmp_path)
    assert peers["ort-cpu-fp32"].step
    assert "its model builder reads Hugging Face folders" in peers["genai-int4"].why_not
    assert "there is no PyTorch module" in peers["pytorch-fp32"].why_not
    assert peers["ort-cuda-fp32"].why_not == "it does not generate text"
    del plan.steps[peers["ort-cpu-fp16"].step]
    made = run(plan, ("export", "prepare", "fold", "reference", "peer"), tmp_path)
    check(json.loads((made["tiny-decoder/peer/ort-cpu-fp32"] / "latency.json").read_text()))


def test_genai_is_for_decoders(tmp_path):
    _, peers = planned(Path("recipes/digits.yaml"), tmp_path)
    assert peers["genai-fp32"].why_not == "it runs decoder language models only"


@pytest.mark.torch
@pytest.mark.parametrize("name", ["pytorch-fp32", "genai-fp32"])
def test_a_folders_peers_run_and_are_right(name, tmp_path):
    pytest.importorskip("torch")
    if name.startswith("genai"):
        pytest.importorskip("onnxruntime_genai")
    text = Path("recipes/tiny-decoder.yaml").read_text().replace("onnx: models/tiny-decoder/model.onnx", "huggingface: models/tiny-decoder")  # fmt: skip
    for part in ("models/tiny-decoder", "data"):
        shutil.copytree(Path("recipes") / part, tmp_path / part)
    (tmp_path / "tiny.yaml").write_text(text)
    plan, peers = planned(tmp_path / "tiny.yaml", tmp_path)
    for other, peer in peers.items():
        if other != name and peer.step:
            del plan.steps[peer.step]
    made = run(plan, ("export", "prepare", "fold", "reference", "peer"), tmp_path)
    check(json.loads((made[f"tiny-decoder/peer/{name}"] / "latency.json").read_text()))
