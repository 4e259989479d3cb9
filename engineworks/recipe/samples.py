"""Samples in .npz files: checked by their headers alone, read batch by batch.

Axis 0 of every array counts the samples; one sample has the shape of the model's input without its batch dimension. The
batch dimension is the one whose name begins with 'batch', else the name of axis 0 of the first input that has a name
there. Rows are stacked along the axis where each input has that name. So [samples, layers, …] in the file feeds an
input [layers, batch, …].

Samples may lie in several files, each of one length of a named dimension. They count as one sequence, file after file,
and no batch holds samples of two files.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from engineworks.errors import SamplesError
from engineworks.host.lazy import Array, NDArray, np
from engineworks.recipe.batch import batch_axes, batch_sizes, fills, fixed_batch, samples_per_run
from engineworks.recipe.datasets.preparation import LENGTHS, PYTHON_SLICES, Preparation, Ragged
from engineworks.recipe.npz import NpzReader, RowReader, read_headers
from engineworks.recipe.sample_checks import array_name, check_fit, check_label_kinds, check_labels, check_slices
from engineworks.tensors import TensorSpec, spec_from_json

NO_LABEL = -100
"""Padding of labels: metrics leave it out (`measure.task_metrics`)."""

EVERY_SAMPLE = "*"
"""In place of an array: all samples are one slice, so that the whole metric gets its interval."""

Arrays = dict[str, Array]


@dataclass(frozen=True)
class SampleFile:
    """Samples of a model: the arrays of files that feed each input.

    arrays: input → array name. labels: name of the label array. count: number of samples used, evenly spread over
    `total`, so that a file sorted by class still gives every class. ragged: rows have their own lengths, and batches
    are cut to the longest. preparation: set if `path` is the source of an .npz instead of an .npz. more: further files
    after `path`. totals: if there are several files, the number of samples in each, `path` first.
    """

    path: Path
    specs: tuple[TensorSpec, ...]
    arrays: Mapping[str, str]
    labels: str | None
    total: int
    count: int
    ragged: Ragged | None = None
    preparation: Preparation | None = None
    more: tuple[Path, ...] = ()
    totals: tuple[int, ...] = ()
    chosen: tuple[int, ...] = ()
    """Rows of the file to read instead, `count` of them; only for a single file."""
    slices: str | None = None
    """Name of the array that names each sample's slice."""

    @property
    def paths(self) -> tuple[Path, ...]:
        return (self.path, *self.more)

    @property
    def title(self) -> str:
        """The data's name in messages: 'lines.npz', or 'lines32.npz and 2 more files'."""
        rest = len(self.more)
        return self.path.name + (f" and {rest} more file{'s' if rest > 1 else ''}" if rest else "")

    @property
    def sources(self) -> tuple[Path, ...]:
        """Every file that shapes the samples."""
        return tuple(self.preparation.read()) if self.preparation else self.paths

    @property
    def rows(self) -> Sequence[int]:
        """Indices of the samples in use; those of a further file follow the last of the file before."""
        if self.chosen:
            return list(self.chosen)
        if not self.more and self.count and self.total % self.count == 0:  # millions of samples take no memory
            return range(0, self.total, self.total // self.count)
        indices, start = [], 0
        for total, count in zip(self._totals, self.counts, strict=True):
            indices += [start + i * total // count for i in range(count)]
            start += total
        return indices

    @property
    def _totals(self) -> tuple[int, ...]:
        return self.totals or (self.total,)

    @property
    def counts(self) -> tuple[int, ...]:
        """Number of samples used from each file: in proportion to its size, in whole runs if the batch is fixed."""
        step = fixed_batch(self.specs) or 1 if self.more else 1
        picks, units = self.count // step, self.total // step
        counts, start = [], 0
        for total in self._totals:
            end = start + total // step
            # Of the picks j · units // picks, those that lie in [start, end).
            counts.append((-(-end * picks // units) - -(-start * picks // units)) * step)
            start = end
        return tuple(counts) if self.more else (self.count,)

    def fills(self, sizes: Sequence[int]) -> bool:
        """Whether the samples of every file can be cut into batches from the minimum to the maximum of `sizes`."""
        return all(fills(count, sizes) for count in self.counts)

    def filling(self, most: int, sizes: Sequence[int]) -> int:
        """The largest number of samples up to `most` that can be cut into such batches; 0 if there is none."""
        return next((n for n in range(most, 0, -1) if replace(self, count=n).fills(sizes)), 0)

    def by_file(self) -> Iterator[SampleFile]:
        """The samples in use, file by file: each of one length. A single file gives itself."""
        for path, total, count in zip(self.paths, self._totals, self.counts, strict=True):
            if count:
                yield replace(self, path=path, total=total, count=count, more=(), totals=()) if self.more else self

    def starts(self) -> Iterator[int]:
        """Index of the first sample of every file that `by_file` gives, in order."""
        start = 0
        for total, count in zip(self._totals, self.counts, strict=True):
            if count:
                yield start
            start += total

    def batches(self, sizes: Sequence[int]) -> Iterator[Arrays]:
        """Feeds of the model, input → array in the input's shape and dtype; batch sizes cycle through `sizes`.

        Only one batch is held in memory, and none has samples of two files.
        """
        turn = 0
        for file in self.by_file():
            for feeds in file._batches(sizes, turn):
                yield feeds
                turn += 1

    def _batches(self, sizes: Sequence[int], turn: int) -> Iterator[Arrays]:
        """The batches of a single file. turn: number of batches before."""
        names = {*self.arrays.values(), *([LENGTHS] if self.ragged else [])}
        with ExitStack() as open_files:
            readers = {n: open_files.enter_context(closing(RowReader(self.path, n))) for n in sorted(names)}
            done, rows = 0, self.rows
            for size in batch_sizes(len(rows), sizes, turn):
                take = rows[done : done + size]
                yield self._feeds({name: reader.rows(take) for name, reader in readers.items()})
                done += size

    def _feeds(self, read: Mapping[str, NDArray[Any]]) -> Arrays:
        """Rows by array name, [samples, …] → inputs in the model's own layout and the array's dtype."""
        axes, feeds = batch_axes(self.specs), dict[str, Any]()
        for spec in self.specs:
            axis = axes[spec.name]
            block = self._cut(spec, axis, read[self.arrays[spec.name]], read.get(LENGTHS) if self.ragged else None)
            sample = block[0] if axis is None else np.moveaxis(block, 0, axis)
            feeds[spec.name] = np.asarray(sample, order="C")  # ascontiguousarray makes a scalar one-dimensional
        return feeds

    def _cut(
        self, spec: TensorSpec, axis: int | None, block: NDArray[Any], lengths: NDArray[Any] | None
    ) -> NDArray[Any]:
        """Rows [samples, …] without the padding that no row of this batch needs."""
        if self.ragged is None or lengths is None or self.ragged.dim not in spec.shape:
            return block
        width = self.ragged.width(len(block), int(lengths.max()))
        own = [d for at, d in enumerate(spec.shape) if at != axis]
        return block[(slice(None), *(slice(width) if d == self.ragged.dim else slice(None) for d in own))]

    def label_parts(self) -> list[Array] | None:
        """The labels of the samples in use, in order, one array [samples, …] per file; None without labels."""
        if self.labels is None:
            return None
        parts = []
        for file in self.by_file():
            with NpzReader(file.path) as archive:
                parts.append(archive.read(self.labels)[file.rows])
        return parts

    @property
    def slice_function(self) -> str:
        """module:function of the recipe's own that names the slices, '' without one."""
        slices = self.slices or ""
        return slices.removeprefix(PYTHON_SLICES) if slices.startswith(PYTHON_SLICES) else ""

    def slice_names(self) -> NDArray[np.str_] | None:
        """The slice of each sample in use, str[count], in order; None where the recipe names none or a function."""
        if self.slices is None or self.slice_function:
            return None
        if self.slices == EVERY_SAMPLE:
            return np.full(self.count, "all")
        parts = []
        for file in self.by_file():
            with NpzReader(file.path) as archive:
                parts.append(archive.read(self.slices)[file.rows].astype(np.str_))
        return np.concatenate(parts)

    def read_labels(self) -> Array | None:
        """The labels of the samples in use, [count, …], in order; shorter ones are padded with `NO_LABEL`."""
        parts = self.label_parts()
        return None if parts is None else stacked(parts, NO_LABEL)


def stacked(arrays: Sequence[NDArray[Any]], fill: float) -> NDArray[Any]:
    """Arrays [rows, …] → all rows as one array [all rows, …], shorter ones padded with `fill`.

    Unsigned types become signed for a negative `fill`.
    """
    shape = tuple(max(lengths) for lengths in zip(*(a.shape[1:] for a in arrays), strict=True))
    if all(a.shape[1:] == shape for a in arrays):
        return np.concatenate(arrays)
    dtype = np.result_type(arrays[0].dtype, np.int16) if fill < 0 else arrays[0].dtype
    rows = np.full((sum(map(len, arrays)), *shape), fill, dtype)
    start = 0
    for array in arrays:
        rows[(slice(start, start + len(array)), *(slice(length) for length in array.shape[1:]))] = array
        start += len(array)
    return rows


def samples_from_json(paths: Path | str | Sequence[Path | str], value: Mapping[str, Any]) -> SampleFile:
    """The samples that a plan describes, in the files that were found when it was made."""
    path, *more = map(Path, [paths] if isinstance(paths, Path | str) else paths)
    specs = tuple(spec_from_json(s) for s in value["specs"])
    ragged = Ragged.from_json(value["ragged"]) if "ragged" in value else None
    total, count, totals = int(value["total"]), int(value["count"]), tuple(value.get("totals", ()))
    samples = SampleFile(path, specs, value["arrays"], value.get("labels"), total, count, ragged)
    return replace(samples, more=tuple(more), totals=totals, slices=value.get("slices"))


def open_samples(
    paths: Path | Sequence[Path],
    specs: Sequence[TensorSpec],
    names: Mapping[str, str],
    *,
    samples: int | None,
    labels: str | None,
    slices: str | None = None,
) -> SampleFile:
    """Check the files' headers against the model's inputs. Raises `SamplesError` for the first problem."""
    path, *more = [paths] if isinstance(paths, Path) else paths
    opened = [_open_file(file, specs, names, labels) for file in (path, *more)]
    totals = tuple(total for _, total in opened)
    total, fixed = sum(totals), fixed_batch(specs)
    what = "the files have" if more else "the file has"
    if samples is not None and samples > total:
        raise SamplesError(f"{path}: {samples} samples are asked for, {what} {total}", hint=f"samples: {total} at most")
    count = samples or total
    if fixed and count % fixed:
        advice = f"samples: {count - count % fixed}" if count > fixed else "give it more samples"
        raise SamplesError(f"{path}: {count} samples, and the model takes {fixed} at a time", hint=advice)
    for file, held in zip((path, *more), totals, strict=True):
        if fixed and more and held % fixed:
            raise SamplesError(
                f"{file}: {held} samples, and the model takes {fixed} at a time, all of one file",
                hint=f"give this file a multiple of {fixed} samples",
            )
    if labels is not None and more:
        check_label_kinds((path, *more), labels)
    for file, held in zip((path, *more), totals, strict=True):
        if slices is not None:
            check_slices(file, slices, held)
    first = SampleFile(path, tuple(specs), opened[0][0], labels, total, count, slices=slices)
    return replace(first, more=tuple(more), totals=totals) if more else first


def _open_file(
    path: Path, specs: Sequence[TensorSpec], names: Mapping[str, str], labels: str | None
) -> tuple[dict[str, str], int]:
    """Input → array name, and the number of samples in the file."""
    headers = read_headers(path)
    arrays = {spec.name: array_name(path, spec, names, headers) for spec in specs}
    totals = {a: headers[a].shape[0] if headers[a].shape else 0 for a in arrays.values()}
    for spec in specs:
        check_fit(path, spec, arrays[spec.name], headers[arrays[spec.name]], batch_axes(specs)[spec.name])
    total = next(iter(totals.values()))
    for array, count in totals.items():
        if count != total:
            raise SamplesError(f"{path}: '{array}' has {count} samples, '{next(iter(totals))}' has {total}")
    if total == 0:
        raise SamplesError(f"{path}: holds no samples", hint="axis 0 of every array counts them")
    if labels is not None:
        check_labels(path, labels, headers, total)
    return arrays, total


def feeds_at(specs: tuple[TensorSpec, ...], samples: SampleFile, dims: Mapping[str, int]) -> dict[str, Array]:
    """Feeds of exactly this shape from real samples, repeated if too few or short, cut if too long.

    Input → array of shape `spec.concrete(dims)` in the input's dtype. Real values keep token ids within the vocabulary,
    and data-dependent kernels at their usual speed.
    """
    axes = batch_axes(specs)
    batch = samples_per_run(specs, dims)
    feeds = next(samples.batches([1 if None in axes.values() else min(batch, samples.count)]))
    return {spec.name: _fit(feeds[spec.name], spec.concrete(dims)) for spec in specs}


def _fit(array: Array, shape: tuple[int, ...]) -> Array:
    """The array in this shape, same dtype: repeated or cut along each axis; zeros for an empty one."""
    for axis, length in enumerate(shape):
        have = array.shape[axis]
        if have == 0 or length == 0:
            array = np.zeros((*array.shape[:axis], length, *array.shape[axis + 1 :]), array.dtype)
        elif have != length:
            tiled = np.concatenate([array] * math.ceil(length / have), axis=axis)
            array = np.take(tiled, range(length), axis=axis)
    return np.asarray(array, order="C")
