"""The texts that `prepare` made for a decoder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engineworks.recipe.npz import NpzReader

Tokens = NDArray[np.int64]


@dataclass(frozen=True)
class Texts:
    """Token ids: texts to predict, prompts to continue, and one text that fills the context."""

    texts: tuple[Tokens, ...]
    prompts: tuple[Tokens, ...]
    long: Tokens


STREAMS, MOST_TOKENS = 3, 48
"""Texts that meet every situation, and tokens of each: the situations repeat them about twelve times."""


def situation_texts(texts: Texts, context: int) -> list[Tokens]:
    """Return the longest texts, each cut so that one position is left behind it."""
    longest = sorted(texts.texts, key=len, reverse=True)[:STREAMS]
    return [text[: min(MOST_TOKENS, context - 1)] for text in longest]


def read_texts(path: Path) -> Texts:
    with NpzReader(path) as archive:
        texts, prompts, long = (_rows(archive, name) for name in ("texts", "prompts", "long"))
    return Texts(texts, prompts, long[0])


def _rows(archive: NpzReader, name: str) -> tuple[Tokens, ...]:
    values: Any = archive.read(name)
    ends = np.cumsum(archive.read(f"{name}_lengths"))
    return tuple(np.split(values, ends[:-1]))
