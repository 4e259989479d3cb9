"""Hugging Face models of every task, with data as people have it: from a folder to an engine's verdict (make test-torch).
The weights are random, so that what is compared is the engine with fp32, and the labels with what the model says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import TARGETS
from text_model import WORDS, write_tokenizer

from engineworks.builds.step import run_step
from engineworks.host.child import default_pool
from engineworks.host.file_digests import FileDigests
from engineworks.plan.plan import plan_recipe
from engineworks.recipe.load import load_recipe
from engineworks.store.store import Store

pytestmark = pytest.mark.torch

SIZES: dict[str, Any] = {
    "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24,
}  # fmt: skip

RECIPE = """\
recipe: task
model: {{source: {{huggingface: model}}}}
inputs: {inputs}
outputs: {outputs}
shapes: {{default: {shapes}}}
precisions: [fp32]
data: {{evaluation: {data}}}
accuracy: {{metric: {metric}, limits: {{fp32: {{cosine: 0.9999}}}}}}
targets: [cpu]
"""
TEXT = {
    "inputs": "{input_ids: {dtype: int64, shape: [batch, sequence]}, attention_mask: {dtype: int64, shape: [batch, sequence]}}",
    "shapes": "{batch: [1, 2, 4], sequence: [4, 8, 16]}",
}


def accuracy(repository: Path, **said: str) -> dict[str, Any]:
    recipes = repository / "recipes"
    (recipes / "_targets.yaml").write_text(TARGETS)
    (recipes / "task.yaml").write_text(RECIPE.format(**said))
    store = Store(recipes / "store")
    planned = plan_recipe(load_recipe(recipes / "task.yaml"), store, FileDigests(None))
    for step in planned.steps.values():
        run_step(step, store, default_pool(), echo=lambda _: None)
    found: dict[str, Any] = store.require(planned.engines[0].steps["compare"]).read_json("accuracy.json")
    return found


def save_bert(repository: Path, head: str, **config: Any) -> Any:
    import torch
    import transformers

    torch.manual_seed(3)
    made = transformers.BertConfig(**SIZES, vocab_size=len(WORDS), max_position_embeddings=32, **config)
    model = getattr(transformers, head)(made).eval()
    model.save_pretrained(repository / "recipes" / "model")
    write_tokenizer(repository / "recipes" / "model")
    return model


def says(model: Any, words: list[str]) -> Any:
    """The model's outputs for one text of these words."""
    import torch

    ids = [WORDS.index(w) for w in ("[CLS]", *words, "[SEP]")]
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.int64))


TEXTS = [
    ["good", "film"],
    ["the", "very", "bad", "song"],
    ["a", "fine", "book"],
    ["awful"],
    ["the", "great", "film", "a", "poor", "song"],
]


def write_rows(repository: Path, rows: list[dict[str, Any]]) -> None:
    (repository / "recipes" / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_text_classification_with_labels_by_name(repository: Path) -> None:
    names = {0: "angry", 1: "bored", 2: "happy"}
    model = save_bert(
        repository, "BertForSequenceClassification", id2label=names, label2id={v: k for k, v in names.items()}
    )
    rows = [{"text": " ".join(t), "label": names[int(says(model, t).logits.argmax())]} for t in TEXTS]
    write_rows(repository, rows)
    report = accuracy(
        repository, **TEXT, outputs="{logits: [batch, 3]}", data="{text: rows.jsonl, labels: label}", metric="top1"
    )
    assert report["metric"] | {"samples": 5} == report["metric"]
    assert report["metric"]["engine"] == 1.0


@pytest.mark.parametrize("metric", ["top1", "{f1: micro}"])
def test_token_classification_counts_words_and_no_padding(repository: Path, metric: str) -> None:
    model = save_bert(repository, "BertForTokenClassification", num_labels=3)
    tags = [says(model, t).logits[0, 1:-1].argmax(-1).tolist() for t in TEXTS]
    tags[1][0] = (tags[1][0] + 1) % 3  # one of 16 words is labelled wrong
    write_rows(repository, [{"words": t, "tags": y} for t, y in zip(TEXTS, tags, strict=True)])
    data = "{text: rows.jsonl, columns: words, labels: tags}"
    report = accuracy(repository, **TEXT, outputs="{logits: [batch, sequence, 3]}", data=data, metric=metric)
    assert report["metric"]["engine"] == pytest.approx(15 / 16)


def test_question_answering_wants_whole_spans(repository: Path) -> None:
    model = save_bert(repository, "BertForQuestionAnswering")
    from engineworks.measure.task_metrics import best_spans

    rows = []
    for words in TEXTS:
        found = says(model, words)
        span = best_spans(np.stack([found.start_logits.numpy(), found.end_logits.numpy()], axis=-1))[0]
        first, last = np.clip(span - 1, 0, len(words) - 1)
        text = " ".join(words)
        start = len(" ".join(words[:first])) + (1 if first else 0)
        answer = {"text": [" ".join(words[first : last + 1])], "answer_start": [start]}
        rows.append({"text": text, "answers": answer, "right": bool((span == (first + 1, last + 1)).all())})
    write_rows(repository, rows)
    report = accuracy(
        repository, **TEXT, outputs="{start_logits: [batch, sequence], end_logits: [batch, sequence]}",
        data="{text: rows.jsonl, labels: answers}", metric="span",
    )  # fmt: skip
    assert report["metric"]["engine"] == sum(row["right"] for row in rows) / len(rows)


def test_feature_extraction_needs_no_labels(repository: Path) -> None:
    save_bert(repository, "BertModel")
    write_rows(repository, [{"text": " ".join(t)} for t in TEXTS])
    report = accuracy(
        repository, **TEXT, outputs="{last_hidden_state: [batch, sequence, 16]}", data="{text: rows.jsonl}",
        metric="cosine",
    )  # fmt: skip
    assert report["metric"]["engine"] > 0.9999


def test_image_classification_by_the_models_own_processor(repository: Path) -> None:
    import torch
    import transformers
    from PIL import Image

    torch.manual_seed(3)
    names = {0: "cat", 1: "dog"}
    config = transformers.ViTConfig(
        **SIZES, image_size=8, patch_size=4, id2label=names, label2id={v: k for k, v in names.items()}
    )
    model = transformers.ViTForImageClassification(config).eval()
    folder = repository / "recipes" / "model"
    model.save_pretrained(folder)
    settings = {"image_processor_type": "ViTImageProcessor", "size": {"height": 8, "width": 8}}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    processor = transformers.AutoImageProcessor.from_pretrained(str(folder), backend="pil")
    random = np.random.default_rng(1)
    for number in range(6):
        image = Image.fromarray(random.integers(0, 256, (10 + number, 12, 3), dtype=np.uint8))
        with torch.no_grad():
            label = int(model(processor(images=image, return_tensors="pt")["pixel_values"]).logits.argmax())
        place = repository / "recipes" / "photos" / names[label] / f"{number}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        image.save(place)
    report = accuracy(
        repository, inputs="{pixel_values: {dtype: float32, shape: [batch, 3, 8, 8]}}", outputs="{logits: [batch, 2]}",
        shapes="{batch: [1, 2, 4]}", data="{images: photos, labels: folder}", metric="top1",
    )  # fmt: skip
    assert (report["metric"]["samples"], report["metric"]["engine"]) == (6, 1.0)
