"""A word-level tokenizer and a tiny model of token ids, without torch: what text recipes are tried with."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    *["good", "fine", "great", "bad", "poor", "awful", "film", "book", "song", "the", "a", "very"],
]

RECIPE = """\
recipe: moods
model: {source: {onnx: moods.onnx}}
inputs:
  input_ids: {dtype: int64, shape: [batch, sequence]}
  attention_mask: {dtype: int64, shape: [batch, sequence]}
outputs: {logits: [batch, 2]}
shapes:
  default: {batch: [1, 4, 8], sequence: [4, 8, 16]}
precisions: [fp32, int8]
data:
  calibration: {text: moods.jsonl, tokenizer: tokenizer, samples: 12}
  evaluation: {text: moods.csv, tokenizer: tokenizer, labels: mood}
accuracy:
  metric: top1
  limits:
    fp32: {metric: 0.9, cosine: 0.9999}
    int8: {cosine: 0.9}
targets: [cpu]
performance:
  at: {one: {batch: 1, sequence: 8}}
"""


def write_tokenizer(folder: Path, words: list[str] = WORDS) -> None:
    """tokenizer.json of the tokenizers library: words, [CLS] before and [SEP] after each text."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    folder.mkdir(parents=True, exist_ok=True)
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    made.save(str(folder / "tokenizer.json"))
    settings = {"pad_token": "[PAD]", "model_max_length": 12}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def mood_model() -> onnx.ModelProto:
    """Sums of what each word says, masked: input_ids, attention_mask i64[batch, sequence] → logits f32[batch, 2]."""
    table = np.zeros((len(WORDS), 8), np.float32)
    random = np.random.default_rng(0)
    for word, sign in (("good", 1), ("fine", 1), ("great", 1), ("bad", -1), ("poor", -1), ("awful", -1)):
        table[WORDS.index(word)] = sign + random.normal(0, 0.05, 8)
    weights = np.concatenate([np.full((8, 1), -1), np.full((8, 1), 1)], axis=1) + random.normal(0, 0.1, (8, 2))
    graph = helper.make_graph(
        [
            helper.make_node("Gather", ["table", "input_ids"], ["words"], name="words"),
            helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT, name="mask"),
            helper.make_node("Unsqueeze", ["mask", "last"], ["mask3"], name="mask3"),
            helper.make_node("Mul", ["words", "mask3"], ["masked"], name="masked"),
            helper.make_node("ReduceSum", ["masked", "middle"], ["sum"], keepdims=0, name="sum"),
            helper.make_node("MatMul", ["sum", "w"], ["logits"], name="classifier"),
        ],
        "moods",
        [helper.make_tensor_value_info(n, TensorProto.INT64, ["batch", "sequence"]) for n in ("input_ids", "attention_mask")],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 2])],
        [
            numpy_helper.from_array(table, "table"), numpy_helper.from_array(weights.astype(np.float32), "w"),
            numpy_helper.from_array(np.array([2], np.int64), "last"), numpy_helper.from_array(np.array([1], np.int64), "middle"),
        ],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)


def write_moods(recipes: Path) -> None:
    """The recipe with its model, tokenizer and data into a folder of recipes. One text is longer than the tokenizer
    allows."""
    good, bad = ("good", "fine", "great"), ("bad", "poor", "awful")
    pairs = [(f"the {thing} a very {mood} {thing}"[: 200 if i % 2 else None], int(mood in good))
             for i, mood in enumerate((*good, *bad) * 2) for thing in ("film", "song")]  # fmt: skip
    pairs = [(text if i % 3 else text.partition(" a ")[2], mood) for i, (text, mood) in enumerate(pairs)]
    pairs.append(("very " * 20 + "good", 1))
    lines = [f'"{text}",{"happy" if mood else "angry"}' for text, mood in pairs]
    (recipes / "moods.csv").write_text("text,mood\n" + "\n".join(lines) + "\n")
    (recipes / "moods.jsonl").write_text("\n".join(json.dumps({"text": text}) for text, _ in pairs) + "\n")
    (recipes / "moods.yaml").write_text(RECIPE)
    onnx.save(mood_model(), recipes / "moods.onnx")
    write_tokenizer(recipes / "tokenizer")
