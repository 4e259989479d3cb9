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


def read_texts(path: Path) -> Texts:
    with NpzReader(path) as archive:
        texts, prompts, long = (_rows(archive, name) for name in ("texts", "prompts", "long"))
    return Texts(texts, prompts, long[0])


def _rows(archive: NpzReader, name: str) -> tuple[Tokens, ...]:
    values: Any = archive.read(name)
    ends = np.cumsum(archive.read(f"{name}_lengths"))
    return tuple(np.split(values, ends[:-1]))
