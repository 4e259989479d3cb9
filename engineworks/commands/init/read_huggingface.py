"""Facts from a Hugging Face folder's config.json: inputs and outputs of its task, lengths, ids."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from engineworks.commands.init.draft import ModelFacts, RawTensor
from engineworks.errors import ModelError
from engineworks.model.export.from_huggingface import find_folder, task_of
from engineworks.store.json_files import read_json_object

_WITHOUT_TOKEN_TYPES = frozenset({"distilbert", "roberta", "xlm-roberta", "camembert", "mpnet", "deberta-v2", "bart"})


def read_huggingface(source: str, root: Path, task: str | None) -> ModelFacts:
    """Return facts from the config alone; nothing is loaded. Raises `ModelError` for no model, or an unknown task."""
    folder = find_folder(source, root)
    chosen = task_of(folder, task)
    config = read_json_object(folder / "config.json", ModelError)
    if chosen == "image-classification":
        return _images(config, chosen)
    names = ["input_ids", "attention_mask"]
    types = int(config.get("type_vocab_size") or 0)
    if types > 1 and config.get("model_type") not in _WITHOUT_TOKEN_TYPES:
        names.append("token_type_ids")
    ranges = {"input_ids": (0.0, float(config.get("vocab_size", 1000)) - 1)}
    if "token_type_ids" in names:
        ranges["token_type_ids"] = (0.0, float(types - 1))
    longest = int(config.get("max_position_embeddings") or 512)
    if config.get("model_type") in ("roberta", "xlm-roberta", "camembert"):
        longest -= 2  # their positions begin after the padding token's
    inputs = tuple(RawTensor(name, "int64", ("batch", "sequence")) for name in names)
    return ModelFacts(
        inputs, _text_outputs(config, chosen), ranges, task=chosen, limits={"sequence": min(longest, 512)}
    )


def _images(config: dict[str, Any], task: str) -> ModelFacts:
    size = config.get("image_size", 224)
    height, width = size if isinstance(size, list) else (size, size)
    pixels = RawTensor(
        "pixel_values", "float32", ("batch", int(config.get("num_channels", 3)), int(height), int(width))
    )
    logits = RawTensor("logits", "float32", ("batch", _labels(config)))
    return ModelFacts((pixels,), (logits,), {"pixel_values": (-1.0, 1.0)}, task=task)


def _text_outputs(config: dict[str, Any], task: str) -> tuple[RawTensor, ...]:
    if task == "feature-extraction":
        width = config.get("hidden_size") or config.get("dim") or config.get("d_model")
        return (RawTensor("last_hidden_state", "float32", ("batch", "sequence", width)),)
    if task == "question-answering":
        return tuple(RawTensor(n, "float32", ("batch", "sequence")) for n in ("start_logits", "end_logits"))
    if task == "fill-mask":
        return (RawTensor("logits", "float32", ("batch", "sequence", int(config["vocab_size"]))),)
    shape = ("batch", "sequence", _labels(config)) if task == "token-classification" else ("batch", _labels(config))
    return (RawTensor("logits", "float32", shape),)


def _labels(config: dict[str, Any]) -> int:
    names = config.get("id2label")
    return len(names) if isinstance(names, dict) and names else int(config.get("num_labels", 2))
