"""How samples are made from text or images: the parameters that shape them, and the files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engineworks.typed_json import Record

LABELS = "labels"
"""Name of the label array among the prepared arrays."""

PYTHON_SLICES = "python:"
"""Begins the name of a function that names slices, as in 'python:module:function'; others name an array or column."""

SLICES = "slices"
"""Name of the array of slice names among the prepared arrays."""

LENGTHS = "lengths"
"""Name of the array of the rows' own lengths, if these differ."""

REPORT_FILE = "prepared.json"
"""The report of the step: samples, classes, and `notes`, messages for the user."""


@dataclass(frozen=True)
class Preparation:
    """The input of the step `prepare`.

    params: all parameters that shape the samples, except files' contents (part of the cache key). files: role → file
    whose digest is part of the key. tree: many files with one common digest. places: role → path that the step reads.
    libraries: distributions whose versions shape the result.
    """

    params: Mapping[str, Any]
    files: Mapping[str, Path]
    places: Mapping[str, Path]
    libraries: tuple[str, ...]
    tree: Mapping[str, Path] = field(default_factory=dict)

    def read(self) -> Iterator[Path]:
        """Every file that is read."""
        yield from self.files.values()
        yield from self.tree.values()


@dataclass(frozen=True)
class Ragged(Record):
    """Rows of different lengths along `dim`, kept padded; a batch is cut to its longest row.

    ranges: one per profile: minimum and maximum batch, then length. A batch is padded to the minimum length that a
    profile allows for its size.
    """

    dim: str
    ranges: tuple[tuple[int, int, int, int], ...] = ()

    def width(self, batch: int, longest: int) -> int:
        """The padded length of a batch of `batch` rows whose longest has `longest` elements."""
        fitting = [
            max(low, longest) for least, most, low, high in self.ranges if least <= batch <= most and longest <= high
        ]
        return min(fitting, default=longest)


def longest_for_all(ranges: Sequence[tuple[int, int, int, int]], batches: Sequence[int]) -> int | None:
    """The maximum length of a row that fits into a batch of every one of these sizes; None without ranges."""
    limits = [
        max((high for least, most, _, high in ranges if least <= batch <= most), default=None) for batch in batches
    ]
    return min((limit for limit in limits if limit is not None), default=None)


def find_made(folder: Path) -> Path:
    """The .npz in the artifact of a `prepare` step; its name comes from its source."""
    return next(folder.glob("*.npz"))
