"""Rows of their own lengths: batches are as long as they need to be, and as the profiles allow."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from engineworks.recipe.datasets.preparation import LABELS, LENGTHS, Ragged, longest_for_all
from engineworks.recipe.datasets.rows import ArchiveWriter
from engineworks.recipe.samples import SampleFile, samples_from_json
from engineworks.tensors import TensorSpec

RANGES = ((1, 4, 4, 32), (8, 64, 8, 16))


def ragged_file(path: Path, lengths: list[int]) -> SampleFile:
    ids = np.zeros((len(lengths), max(*lengths, 8)), np.int64)
    for row, length in zip(ids, lengths, strict=True):
        row[:length] = range(1, length + 1)
    with ArchiveWriter(path) as archive:
        archive.write("ids", ids)
        archive.write(LENGTHS, np.array(lengths, np.int64))
        archive.write(LABELS, np.arange(len(lengths)))
    specs = (TensorSpec("ids", "int64", ("batch", "sequence")),)
    return SampleFile(path, specs, {"ids": "ids"}, LABELS, len(lengths), len(lengths), Ragged("sequence", RANGES))


def test_a_batch_is_padded_to_its_longest_row_and_no_further(tmp_path: Path) -> None:
    samples = ragged_file(tmp_path / "a.npz", [5, 6, 12, 9, 5])
    assert [feeds["ids"].shape for feeds in samples.batches([2])] == [(2, 6), (2, 12), (1, 5)]
    assert [feeds["ids"][0, -1] for feeds in samples.batches([1])] == [5, 6, 12, 9, 5]


def test_a_batch_is_at_least_as_long_as_a_profile_of_its_size_allows(tmp_path: Path) -> None:
    samples = ragged_file(tmp_path / "a.npz", [2] * 9)
    assert [feeds["ids"].shape for feeds in samples.batches([1, 8])] == [(1, 4), (8, 8)]


def test_a_length_that_no_profile_of_the_size_allows_is_kept() -> None:
    assert Ragged("sequence", RANGES).width(8, 20) == 20
    assert Ragged("sequence", RANGES).width(2, 20) == 20


def test_texts_are_cut_to_what_every_batch_size_allows() -> None:
    assert longest_for_all(RANGES, [1, 4]) == 32
    assert longest_for_all(RANGES, [1, 8, 64]) == 16
    assert longest_for_all((), [1]) is None


def test_what_a_plan_says_of_samples_reads_them_again(tmp_path: Path) -> None:
    samples = ragged_file(tmp_path / "a.npz", [5, 6])
    assert samples.ragged is not None
    said = {
        "arrays": dict(samples.arrays), "count": 2, "total": 2, "specs": [s.to_json() for s in samples.specs],
        "ragged": samples.ragged.to_json(),
    }  # fmt: skip
    again = samples_from_json(samples.path, said)
    assert [f["ids"].tolist() for f in again.batches([2])] == [f["ids"].tolist() for f in samples.batches([2])]


def test_equal_arrays_make_equal_files(tmp_path: Path) -> None:
    for name in ("a.npz", "b.npz"):
        ragged_file(tmp_path / name, [1, 2, 3])
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    with np.load(tmp_path / "a.npz") as archive:
        assert archive["ids"].shape == (3, 8)
