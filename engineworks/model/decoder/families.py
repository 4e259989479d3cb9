"""The decoder families whose export is known to be right, and what refuses a model.

Each family has a tiny random model in tests/model/test_decoder_families.py. A model of any other is refused by name:
its attention may have parts that the export would leave out without a word. Reads config.json only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from engineworks.errors import ModelError, did_you_mean
from engineworks.store.json_files import read_json_object

FAMILIES: Mapping[str, str] = {
    "apertus": "Apertus", "arcee": "Arcee", "cohere": "Cohere", "cohere2": "Cohere 2", "deepseek_v3": "DeepSeek-V3",
    "ernie4_5": "Ernie 4.5", "exaone4": "EXAONE 4", "gemma": "Gemma", "gemma2": "Gemma 2", "gemma3_text": "Gemma 3",
    "glm": "GLM", "glm4": "GLM 4", "gpt2": "GPT-2", "gpt_neox": "GPT-NeoX", "gpt_oss": "GPT-OSS", "granite": "Granite",
    "helium": "Helium", "hunyuan_v1_dense": "HunYuan", "llama": "Llama", "mistral": "Mistral", "mixtral": "Mixtral",
    "nemotron": "Nemotron", "olmo": "OLMo", "olmo2": "OLMo 2", "olmo3": "OLMo 3", "opt": "OPT", "phi": "Phi",
    "phi3": "Phi 3", "qwen2": "Qwen 2", "qwen2_moe": "Qwen 2 MoE", "qwen3": "Qwen 3", "qwen3_moe": "Qwen 3 MoE",
    "smollm3": "SmolLM 3", "stablelm": "StableLM", "starcoder2": "StarCoder 2",
}  # fmt: skip
"""`model_type` of the config → name."""

DYNAMIC_ROPES = ("dynamic", "longrope")
"""Rotary embeddings whose table follows the length of the prompt. The exported table is one for all positions."""


def read_config(folder: Path) -> dict[str, Any]:
    """Return config.json. Raises `ModelError` if it is no JSON object."""
    return read_json_object(folder / "config.json", ModelError)


def check_family(config: Mapping[str, Any]) -> str:
    """Return the family's `model_type`. Raises `ModelError` for one that is not known."""
    kind = str(config.get("model_type", ""))
    if kind not in FAMILIES:
        known = ", ".join(sorted(FAMILIES))
        close = did_you_mean(kind, FAMILIES)
        hint = f"known are {known}" if not close or "did you mean" not in close else f"{close}; known are {known}"
        raise ModelError(f"decoder family '{kind or 'without a model_type'}' is not known", hint=hint)
    return kind


def context_problems(config: Mapping[str, Any], context: int) -> Iterator[tuple[str, str]]:
    """Yield why a cache of so many positions would be wrong: message and hint."""
    longest = config.get("max_position_embeddings") or config.get("n_positions")
    if isinstance(longest, int) and context > longest:
        yield f"a context of {context} is more than the model was made for ({longest})", f"at most {longest}"
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = rope.get("rope_type") or rope.get("type") if isinstance(rope, dict) else None
    original = (rope.get("original_max_position_embeddings") if isinstance(rope, dict) else None) or config.get(
        "original_max_position_embeddings"
    )
    if kind in DYNAMIC_ROPES and isinstance(original, int) and context > original:
        yield (
            f"rotary embeddings of kind '{kind}' change with the prompt's length beyond {original} positions, and a "
            "cache cannot follow that",
            f"context: {original} at most",
        )
    if config.get("use_bidirectional_attention"):
        yield "its tokens attend to later ones (use_bidirectional_attention), which no cache holds", "use another model"
    others = sorted({t for t in config.get("layer_types") or () if not str(t).endswith("attention")})
    if others:
        yield f"layers of kind {', '.join(others)} keep a state, not keys and values by position", "use another model"


def vocabulary_of(config: Mapping[str, Any]) -> int | None:
    size = config.get("vocab_size")
    return size if isinstance(size, int) else None
