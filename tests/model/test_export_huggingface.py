"""Hugging Face folders → ONNX. What needs torch and transformers is marked (make test-torch)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from engineworks.errors import ModelError
from engineworks.model.export.from_huggingface import export_huggingface, find_folder, source_files, task_of
from engineworks.model.export.interface import Interface
from engineworks.tensors import Dim, InputRange, Profile, TensorSpec

SIZES: dict[str, Any] = {
    "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24, "vocab_size": 20,
    "max_position_embeddings": 32,
}  # fmt: skip
RANGES = {"batch": (1, 2, 4), "sequence": (2, 8, 16)}


def folder(path: Path, config: dict[str, Any], *weights: str) -> Path:
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps(config))
    for name in weights:
        (path / name).write_bytes(b"")
    return path


def test_a_folder_is_found_relative_to_the_recipe(tmp_path: Path) -> None:
    made = folder(tmp_path / "models" / "bert", {}, "model.safetensors")
    assert find_folder("models/bert", tmp_path) == made


def test_an_id_is_found_in_the_local_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "hub" / "models--org--bert"
    made = folder(cache / "snapshots" / "abc", {}, "model.safetensors")
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("abc\n")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    assert find_folder("org/bert", tmp_path) == made


def test_a_model_that_is_nowhere_is_told_with_the_command_that_gets_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(ModelError) as caught:
        find_folder("x/y", tmp_path)
    assert str(caught.value) == (
        f"Hugging Face model 'x/y' is neither a folder at {tmp_path}/x/y nor in the local cache; "
        "this tool does not download: run `huggingface-cli download x/y` where that is allowed"
    )


def test_a_folder_without_config_or_weights_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"holds no config\.json"):
        find_folder("empty", tmp_path)
    folder(tmp_path / "light", {})
    with pytest.raises(ModelError, match=r"holds no weights; expected model\.safetensors"):
        find_folder("light", tmp_path)


def test_config_and_weights_shape_the_model_and_nothing_else(tmp_path: Path) -> None:
    made = folder(tmp_path / "m", {}, "model.safetensors", "pytorch_model.bin", "tokenizer.json", "README.md")
    assert list(source_files(made)) == ["config.json", "model.safetensors"]


def test_every_shard_counts(tmp_path: Path) -> None:
    made = folder(tmp_path / "m", {}, "b.safetensors", "a.safetensors")
    index = {"weight_map": {"x": "b.safetensors", "y": "a.safetensors", "z": "b.safetensors"}}
    (made / "model.safetensors.index.json").write_text(json.dumps(index))
    assert list(source_files(made)) == ["config.json", "model.safetensors.index.json", "a.safetensors", "b.safetensors"]


@pytest.mark.parametrize(
    ("architecture", "task"),
    [
        ("BertModel", "feature-extraction"),
        ("DistilBertForSequenceClassification", "text-classification"),
        ("BertForMaskedLM", "fill-mask"),
        ("RobertaForTokenClassification", "token-classification"),
        ("ViTForImageClassification", "image-classification"),
        ("BertForQuestionAnswering", "question-answering"),
    ],
)
def test_the_task_comes_from_the_architecture(tmp_path: Path, architecture: str, task: str) -> None:
    assert task_of(folder(tmp_path / "m", {"architectures": [architecture]}), None) == task


def test_a_task_or_architecture_that_is_not_supported_is_told_with_those_that_are(tmp_path: Path) -> None:
    made = folder(tmp_path / "m", {"architectures": ["LlamaForCausalLM"]})
    with pytest.raises(ModelError, match=r"LlamaForCausalLM is not supported yet; .*feature-extraction, fill-mask"):
        task_of(made, None)
    with pytest.raises(
        ModelError, match="'text-clasification' is not supported yet; did you mean 'text-classification'"
    ):
        task_of(made, "text-clasification")
    assert task_of(made, "feature-extraction") == "feature-extraction"


def test_a_config_that_is_broken_or_names_no_architecture_is_refused(tmp_path: Path) -> None:
    made = folder(tmp_path / "m", {})
    with pytest.raises(ModelError, match=r"names no architecture; give model\.source\.task"):
        task_of(made, None)
    (made / "config.json").write_text("{")
    with pytest.raises(ModelError, match="cannot be read as JSON"):
        task_of(made, None)


def text(outputs: dict[str, tuple[Dim, ...]], *, opset: int = 18) -> Interface:
    specs = tuple(TensorSpec(n, "int64", ("batch", "sequence")) for n in ("input_ids", "attention_mask"))
    ranges = {s.name: InputRange(*(s.concrete({d: r[i] for d, r in RANGES.items()}) for i in range(3))) for s in specs}
    return Interface(specs, outputs, (Profile("default", ranges),), opset)


def save_bert(path: Path, head: str, *, dtype: str = "float32", **config: Any) -> Any:
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    torch.manual_seed(5)
    model = getattr(transformers, head)(transformers.BertConfig(**SIZES, **config)).eval()
    model.to(getattr(torch, dtype)).save_pretrained(path)
    return model


def run(out: Path, feeds: dict[str, Any]) -> dict[str, Any]:
    session = onnxruntime.InferenceSession(str(out / "model.onnx"), providers=["CPUExecutionProvider"])
    return dict(zip([o.name for o in session.get_outputs()], session.run(None, feeds), strict=True))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


@pytest.mark.torch
@pytest.mark.parametrize(
    ("head", "outputs"),
    [
        ("BertModel", {"last_hidden_state": ("batch", "sequence", 16)}),
        ("BertForSequenceClassification", {"logits": ("batch", 2)}),
        ("BertForTokenClassification", {"logits": ("batch", "sequence", 2)}),
        ("BertForMaskedLM", {"logits": ("batch", "sequence", 20)}),
        ("BertForQuestionAnswering", {"end_logits": ("batch", "sequence"), "start_logits": ("batch", "sequence")}),
    ],
)
def test_every_text_task_gives_the_outputs_of_transformers_in_the_order_of_the_recipe(
    tmp_path: Path, out: Path, head: str, outputs: dict[str, tuple[Dim, ...]]
) -> None:
    import torch

    model = save_bert(tmp_path / "m", head)
    report = export_huggingface("m", tmp_path, text(outputs), out)
    assert report.exporter == "torch.onnx (dynamo)"
    assert "transformers" in report.versions
    ids = np.random.default_rng(0).integers(0, 20, (3, 9))
    mask = np.ones_like(ids)
    mask[1, 5:] = 0
    got = run(out, {"input_ids": ids, "attention_mask": mask})
    with torch.no_grad():
        expected = model(input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(mask))
    assert list(got) == list(outputs)
    for name in outputs:
        assert np.allclose(got[name], expected[name].numpy(), atol=1e-5), name


@pytest.mark.torch
def test_an_opset_that_dynamo_can_not_give_comes_from_the_other_exporter(tmp_path: Path, out: Path) -> None:
    save_bert(tmp_path / "m", "BertForQuestionAnswering")
    report = export_huggingface("m", tmp_path, text({"start_logits": ("batch", "sequence")}, opset=14), out)
    assert (report.exporter, report.opset) == ("torch.onnx (TorchScript)", 14)


@pytest.mark.torch
def test_an_image_classifier_is_exported(tmp_path: Path, out: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = {k: v for k, v in SIZES.items() if k not in ("vocab_size", "max_position_embeddings")}
    transformers.ViTForImageClassification(
        transformers.ViTConfig(**config, image_size=8, patch_size=4, num_labels=3)
    ).save_pretrained(tmp_path / "m")
    spec = TensorSpec("pixel_values", "float32", ("batch", 3, 8, 8))
    ranges = InputRange(*(spec.concrete({"batch": n}) for n in (1, 2, 4)))
    said = Interface((spec,), {"logits": ("batch", 3)}, (Profile("default", {spec.name: ranges}),), 17)
    export_huggingface("m", tmp_path, said, out)
    assert run(out, {"pixel_values": np.zeros((3, 3, 8, 8), np.float32)})["logits"].shape == (3, 3)


@pytest.mark.torch
def test_a_checkpoint_in_bfloat16_is_exported_in_float32(tmp_path: Path, out: Path) -> None:
    save_bert(tmp_path / "m", "BertModel", dtype="bfloat16")
    export_huggingface("m", tmp_path, text({"last_hidden_state": ("batch", "sequence", 16)}), out)
    model = onnx.load(out / "model.onnx")
    assert onnx.TensorProto.BFLOAT16 not in {t.data_type for t in model.graph.initializer}
    assert model.graph.output[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT


@pytest.mark.torch
def test_a_head_that_the_checkpoint_lacks_is_refused_and_not_drawn_at_random(tmp_path: Path, out: Path) -> None:
    save_bert(tmp_path / "m", "BertModel")
    with pytest.raises(
        ModelError, match=r"its weights lack 'classifier\.bias' and 1 more, which text-classification needs"
    ):
        export_huggingface("m", tmp_path, text({"logits": ("batch", 2)}), out, task="text-classification")


@pytest.mark.torch
def test_a_pooler_that_the_checkpoint_lacks_matters_only_where_it_is_an_output(tmp_path: Path, out: Path) -> None:
    save_bert(tmp_path / "m", "BertForMaskedLM")
    said = text({"last_hidden_state": ("batch", "sequence", 16)})
    export_huggingface("m", tmp_path, said, out, task="feature-extraction")
    with pytest.raises(ModelError, match=r"its weights lack 'pooler\.dense\.bias'"):
        export_huggingface("m", tmp_path, text({"pooler_output": ("batch", 16)}), out, task="feature-extraction")


@pytest.mark.torch
def test_an_output_that_the_model_does_not_have_is_told_with_those_it_has(tmp_path: Path, out: Path) -> None:
    save_bert(tmp_path / "m", "BertModel")
    with pytest.raises(ModelError, match="no output 'logits'; its outputs are: last_hidden_state, pooler_output"):
        export_huggingface("m", tmp_path, text({"logits": ("batch", 2)}), out)


@pytest.mark.torch
def test_nodes_are_named_by_the_layers_of_the_model(tmp_path: Path, out: Path) -> None:
    save_bert(tmp_path / "m", "BertForSequenceClassification")
    export_huggingface("m", tmp_path, text({"logits": ("batch", 2)}), out)
    names = {n.name for n in onnx.load(out / "model.onnx").graph.node}
    assert "bert/encoder/layer/0/attention/self/query/MatMul" in names
    assert any(n.startswith("classifier/") for n in names)
