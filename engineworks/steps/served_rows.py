"""The rows that engines run at the shapes of their profiles: real samples if the evaluation data has these lengths,
else synthetic.

They are always the same for the same data and lengths. For synthetic rows, an input with a declared `range` gets
seeded, evenly spread values of it (bools both). Any other gets a seeded mosaic of pieces of real samples, so that its
values are the evaluation data's own, within their minimum and maximum.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from engineworks.host.lazy import Array
from engineworks.measure.served import Lengths, Origin
from engineworks.recipe.batch import batch_axes, batch_dim
from engineworks.recipe.samples import SampleFile
from engineworks.tensors import TensorSpec

Arrays = dict[str, Array]

SOURCE_ROWS = 64
"""Number of real samples that synthetic rows consist of, evenly spread over the evaluation data."""


MOST_LENGTHS = 8
"""Number of lengths of the evaluation data at which engines are compared, besides those of the profiles."""


@dataclass(frozen=True)
class _File:
    """A file of the evaluation data, all of one length. start: index of its first sample in the whole data."""

    start: int
    samples: SampleFile

    def read(self, rows: Sequence[int]) -> Iterator[Arrays]:
        """Yield those of the rows that lie in this file, one by one: inputs by name, in a batch of one."""
        own = tuple(row - self.start for row in rows if 0 <= row - self.start < self.samples.total)
        if own:
            yield from replace(self.samples, count=len(own), chosen=own).batches([1])


def _spread_rows(files: Sequence[_File], count: int) -> tuple[int, ...]:
    """Return that many of the samples in use, or all, evenly spread, as indices in the whole data."""
    used = [file.start + row for file in files for row in file.samples.rows]
    count = min(count, len(used))
    return tuple(used[i * len(used) // count] for i in range(count))


class ServedRows:
    """Pools of rows for any lengths. ranges: input → [minimum, maximum] as the recipe declares it."""

    def __init__(self, samples: SampleFile, ranges: Mapping[str, Sequence[float]]) -> None:
        self._ranges = ranges
        self._specs, self._axes = samples.specs, batch_axes(samples.specs)
        self._batch = batch_dim(samples.specs)
        files = zip(samples.starts(), samples.by_file(), strict=True)
        self._files = [_File(start, replace(file, ragged=None)) for start, file in files]
        self._lengths = [self._lengths_of(file) for file in self._files]
        self._source: list[Arrays] = []

    @property
    def stacked(self) -> bool:
        """Whether rows can be stacked into a batch."""
        return any(axis is not None for axis in self._axes.values())

    def data_lengths(self) -> list[dict[str, int]]:
        """Return the lengths of the evaluation data's dynamic dimensions, without the batch: of MOST_LENGTHS files at
        most, evenly spread from the smallest to the largest."""
        every = sorted({tuple(lengths.items()) for lengths in self._lengths})
        count = min(MOST_LENGTHS, len(every))
        return [dict(every[i * (len(every) - 1) // max(1, count - 1)]) for i in range(count)]

    def _lengths_of(self, file: _File) -> dict[str, int]:
        first, lengths = self._rows(_spread_rows([file], 1))[0], {}
        for spec in self._specs:
            for dim, length in zip(self._row_shape(spec), first[spec.name].shape, strict=True):
                if isinstance(dim, str):
                    lengths[dim] = int(length)
        return lengths

    def elements(self, lengths: Lengths) -> int:
        """Return the number of elements of one row of all inputs."""
        return sum(math.prod(self._shape(s, lengths)) for s in self._specs)

    def choose(self, lengths: Lengths, count: int) -> tuple[tuple[int, ...], Origin]:
        """Choose rows of these lengths and name their origin: "evaluation" (evenly spread rows of the files that have
        these lengths, limited to those used) or "seeded" (numbers of synthetic rows)."""
        files = [f for f, known in zip(self._files, self._lengths, strict=True) if known == dict(lengths)]
        return (_spread_rows(files, count), "evaluation") if files else (tuple(range(count)), "seeded")

    def read(self, lengths: Lengths, rows: Sequence[int], data: str) -> list[Arrays]:
        """Read the rows that `choose` named: inputs by name, without the batch axis, with the dtypes of the specs."""
        if data == "evaluation":
            return self._rows(rows)
        return [{s.name: self._made(s, lengths, i) for s in self._specs} for i in rows]

    def feeds(self, pool: Sequence[Arrays], picks: Sequence[int]) -> Arrays:
        """Return these rows of the pool as one run's inputs, stacked along the batch axis, C-contiguous, with the rows'
        dtypes.

        Inputs without a batch dimension get the first row's, or, where no input has one, the picked row's.
        """
        feeds: Arrays = {}
        for spec in self._specs:
            axis = self._axes[spec.name]
            if axis is None:
                feeds[spec.name] = pool[0 if self.stacked else picks[0]][spec.name]
            else:
                feeds[spec.name] = np.stack([pool[p][spec.name] for p in picks], axis=axis)
        return {name: np.asarray(value, order="C") for name, value in feeds.items()}

    def _row_shape(self, spec: TensorSpec) -> tuple[int | str, ...]:
        axis = self._axes[spec.name]
        return spec.shape if axis is None else spec.shape[:axis] + spec.shape[axis + 1 :]

    def _shape(self, spec: TensorSpec, lengths: Lengths) -> tuple[int, ...]:
        """Return the shape of a row; a batch dimension that an input has twice is 1."""
        known = {str(self._batch): 1, **dict(lengths)}
        return tuple(known[d] if isinstance(d, str) else d for d in self._row_shape(spec))

    def _rows(self, rows: Sequence[int]) -> list[Arrays]:
        """Return real samples as `read` does."""
        every = (feeds for file in self._files for feeds in file.read(rows))
        return [{name: self._first(name, value) for name, value in feeds.items()} for feeds in every]

    def _first(self, name: str, value: Array) -> Array:
        axis = self._axes[name]
        return value if axis is None else np.asarray(np.take(value, 0, axis=axis))

    def _made(self, spec: TensorSpec, lengths: Lengths, index: int) -> Array:
        shape = self._shape(spec, lengths)
        seed = hashlib.sha256(f"{spec.name} {shape} {index}".encode()).digest()
        random = np.random.default_rng(list(seed))
        declared = self._ranges.get(spec.name)
        if declared is not None:
            return _spread(random, spec.dtype, shape, declared)
        largest = max(self._files, key=lambda file: file.samples.count)  # rows of one length, to join them
        self._source = self._source or self._rows(_spread_rows([largest], SOURCE_ROWS))
        # All inputs of a row take the same real samples, so that a mask goes with its tokens.
        order = np.random.default_rng([index, *(n for _, n in lengths)]).permutation(len(self._source))
        return _mosaic([self._source[i][spec.name] for i in order], shape)


def _spread(random: np.random.Generator, dtype: str, shape: tuple[int, ...], ends: Sequence[float]) -> Array:
    """Return uniform values of the dtype and shape, between the two ends (both included for integers)."""
    low, high = ends
    if dtype == "bool" or np.issubdtype(np.dtype(dtype), np.integer):
        return random.integers(int(low), int(high), shape, np.int64, endpoint=True).astype(dtype)
    return random.uniform(low, high, shape).astype(dtype)


def _mosaic(rows: Sequence[Array], shape: tuple[int, ...]) -> Array:
    """Join pieces of different rows along every axis, cut to the shape; zeros where rows are empty. rows: of one rank
    and dtype, that of the result."""
    turn = iter(range(10**9))

    def piece(axes: int) -> Any:
        if not axes:
            return rows[next(turn) % len(rows)]
        axis = axes - 1
        first = piece(axis)
        have, want = first.shape[axis], shape[axis]
        more = [piece(axis) for _ in range(math.ceil(want / have) - 1)] if have else []
        joined = np.concatenate([first, *more], axis=axis) if more else first
        return joined[(slice(None),) * axis + (slice(want),)]

    if 0 in rows[0].shape:
        return np.zeros(shape, rows[0].dtype)
    return np.asarray(piece(len(shape)))
