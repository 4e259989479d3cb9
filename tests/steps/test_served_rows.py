"""Rows as served: real samples of every length that the evaluation data has."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from engineworks.recipe.samples import SampleFile, open_samples
from engineworks.steps.served_rows import MOST_LENGTHS, ServedRows
from engineworks.tensors import TensorSpec


def lines(folder: Path, *sizes: tuple[int, int]) -> SampleFile:
    """One file for each (count, width)."""
    files, start = [], 0
    for count, width in sizes:
        files.append(folder / f"{len(files)}.npz")
        np.savez(files[-1], line=np.arange(start, start + count * width, dtype=np.float32).reshape(count, width))
        start += count * width
    return open_samples(files, [TensorSpec("line", "float32", ("batch", "width"))], {}, samples=None, labels=None)


def test_rows_are_of_every_length(tmp_path: Path) -> None:
    samples = lines(tmp_path, (2, 3), (5, 8), (3, 3))
    rows = ServedRows(samples, {})
    assert rows.data_lengths() == [{"width": 3}, {"width": 8}]
    chosen, data = rows.choose((("width", 3),), 13)
    assert (chosen, data) == ((0, 1, 7, 8, 9), "evaluation")
    every = [b["line"][0] for b in samples.batches([1])]
    read = rows.read((("width", 3),), chosen, data)
    assert all(np.array_equal(row["line"], every[i]) for row, i in zip(read, chosen, strict=True))
    assert rows.choose((("width", 8),), 2) == ((2, 4), "evaluation")
    assert rows.choose((("width", 5),), 2) == ((0, 1), "seeded")


def test_many_lengths_are_spread_from_the_smallest_to_the_largest(tmp_path: Path) -> None:
    samples = lines(tmp_path, *((1, width) for width in range(30, 10, -1)))
    widths = [lengths["width"] for lengths in ServedRows(samples, {}).data_lengths()]
    assert (widths[0], widths[-1], len(widths)) == (11, 30, MOST_LENGTHS)
