"""Labels as data sets write them → class numbers, by the model's own `label2id` if it knows the names."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from engineworks.errors import SamplesError, did_you_mean
from engineworks.host.lazy import NDArray, np


def label_numbers(folder: Path | None) -> dict[str, int]:
    """`label2id` of the model's config.json; {} if missing, or if it holds transformers' placeholders LABEL_0,
    LABEL_1."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8")) if folder else {}
    except (OSError, ValueError):
        return {}
    label2id = config.get("label2id") if isinstance(config, dict) else None
    if not isinstance(label2id, dict) or all(str(name).startswith("LABEL_") for name in label2id):
        return {}
    return {str(name): int(number) for name, number in label2id.items()}


def in_order(names: Iterable[str]) -> dict[str, int]:
    """Numbers by the names' order, if no other numbering is known (as torchvision's ImageFolder counts)."""
    return {name: number for number, name in enumerate(sorted(set(names)))}


def number_of(place: str, label: Any, numbers: Mapping[str, int]) -> int | float:
    """The class number of a label; a number is its own. Raises `SamplesError` for a name that is not in `numbers`."""
    if isinstance(label, bool | int | float):
        return int(label) if isinstance(label, bool) else label
    text = str(label).strip()
    if text in numbers:
        return numbers[text]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    hint = did_you_mean(text, numbers) if numbers else "the model's config.json names classes under label2id"
    raise SamplesError(f"{place}: unknown label '{text}'", hint=hint)


def is_name(label: Any) -> bool:
    """Whether a label is a word, not a number written as text."""
    if not isinstance(label, str):
        return False
    try:
        float(label)
    except ValueError:
        return True
    return False


def as_array(labels: list[int] | list[float] | list[list[int]]) -> NDArray[Any]:
    """The labels as int64[rows] or [rows, n]; float32 if a label is a fraction."""
    array = np.array(labels)
    return array.astype(np.int64 if array.dtype.kind in "iu" else np.float32)
