"""The tokens at which a model stops, by the files next to its tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from engineworks.recipe.datasets.tokenize import load_tokenizer

_FILES = ("generation_config.json", "config.json")


def stop_tokens(folder: Path) -> list[int]:
    """Return the ids of end-of-sequence tokens: those that the model's configs name, else the tokenizer's own."""
    for name in _FILES:
        ids = _read(folder / name).get("eos_token_id")
        found = [ids] if isinstance(ids, int) else ids
        if isinstance(found, list) and found and all(isinstance(i, int) for i in found):
            return list(found)
    token = _read(folder / "tokenizer_config.json").get("eos_token")
    text = token.get("content") if isinstance(token, dict) else token
    found_id = load_tokenizer(folder).token_to_id(text) if isinstance(text, str) else None
    return [] if found_id is None else [int(found_id)]


def _read(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
