"""Task metrics of the example recipes: `metric: {python: metrics:spearman}`.

Each gets all evaluation rows: outputs and inputs of the model by name, and one label per row; higher is better.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Arrays = Mapping[str, NDArray[Any]]

TEXT_THRESHOLD = 0.3
"""Probability above which PP-OCR's post-processing calls a pixel text."""


def spearman(outputs: Arrays, labels: NDArray[Any], inputs: Arrays) -> float:
    """Rank correlation (-1 … 1) of sentence similarity with human ratings.

    outputs: last_hidden_state f32[rows, sequence, width]; inputs: attention_mask [rows, sequence]. Rows 2i and 2i+1
    are a pair; labels [rows] hold its rating twice. A sentence is the mean of its tokens' vectors, as the model was
    trained; similarity is the cosine.
    """
    hidden = outputs["last_hidden_state"].astype(np.float64)
    mask = inputs["attention_mask"].astype(np.float64)[:, :, None]
    pooled = (hidden * mask).sum(axis=1) / np.maximum(mask.sum(axis=1), 1)
    unit = pooled / np.maximum(np.linalg.norm(pooled, axis=1, keepdims=True), 1e-12)
    return _correlation(_ranks((unit[0::2] * unit[1::2]).sum(axis=1)), _ranks(labels[0::2]))


def text_pixels_f1(outputs: Arrays, labels: NDArray[Any], inputs: Arrays) -> float:
    """F1 score (0 … 1) of text pixels over all images together.

    outputs: the one output f32[images, 1, height, width], the probability of text; labels: [images, height, width],
    1 for text.
    """
    (probability,) = outputs.values()
    found, real = probability[:, 0] > TEXT_THRESHOLD, labels > 0
    both, either = int((found & real).sum()), int(found.sum()) + int(real.sum())
    return 2 * both / max(1, either)


def character_accuracy(outputs: Arrays, labels: NDArray[Any], inputs: Arrays) -> float:
    """1 minus the character error rate over all lines together: edits from what was read to the text, per character.

    outputs: the one output f32[lines, steps, classes], where class 0 is the blank; labels: [lines, longest], the
    characters' classes, filled up with 0. Reading takes the likeliest class of each step, drops repetitions, then
    blanks.
    """
    (likely,) = outputs.values()
    edits = characters = 0
    for steps, label in zip(likely.argmax(axis=2), labels, strict=True):
        kept = steps[np.insert(steps[1:] != steps[:-1], 0, True)]
        edits += _edits(kept[kept != 0].tolist(), label[label != 0].tolist())
        characters += int((label != 0).sum())
    return 1 - edits / max(1, characters)


def _edits(read: list[int], meant: list[int]) -> int:
    """Levenshtein's distance: insertions, deletions and substitutions."""
    row = list(range(len(meant) + 1))
    for at, one in enumerate(read, start=1):
        before, row[0] = row[0], at
        for column, other in enumerate(meant, start=1):
            before, row[column] = row[column], min(row[column] + 1, row[column - 1] + 1, before + (one != other))
    return row[-1]


def _ranks(values: NDArray[Any]) -> NDArray[np.float64]:
    """Rank of each value; equal values share the mean of their ranks."""
    _, index, counts = np.unique(values, return_inverse=True, return_counts=True)
    sizes = counts.astype(np.float64)
    ranks: NDArray[np.float64] = (np.cumsum(sizes) - (sizes - 1) / 2)[index]
    return ranks


def _correlation(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Pearson's correlation; NaN where one of the two is constant."""
    a, b = a - a.mean(), b - b.mean()
    scale = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / scale if scale else float("nan")
