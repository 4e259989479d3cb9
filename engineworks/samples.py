"""Samples in .npz files: checked by their headers alone, read batch by batch.

Axis 0 of every array counts the samples; one sample has the shape of the model's input without its batch dimension.
The batch dimension is the name of axis 0 of the first input that has a name there; rows are stacked along the axis
where each input has that name, so [samples, layers, …] in the file feeds an input [layers, batch, …].
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from engineworks.datasets.preparation import LENGTHS, Preparation, Ragged
from engineworks.errors import SamplesError
from engineworks.suggest import did_you_mean
from engineworks.tensors import TensorSpec, spec_from_json

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Arrays = dict[str, NDArray[np.generic]]


@dataclass(frozen=True)
class ArrayHeader:
    """dtype and shape of one array of the file."""

    dtype: str
    shape: tuple[int, ...]
    fortran: bool


@dataclass(frozen=True)
class SampleFile:
    """Samples of a model: which arrays of which file feed which input.

    arrays: input → array name. labels: name of the label array. count: how many samples are used, evenly spread over
    `total`, so that a file sorted by class still gives every class. ragged: rows have lengths of their own, and batches
    are cut to the longest. preparation: set where `path` is no .npz but what one is made of.
    """

    path: Path
    specs: tuple[TensorSpec, ...]
    arrays: Mapping[str, str]
    labels: str | None
    total: int
    count: int
    ragged: Ragged | None = None
    preparation: Preparation | None = None
    chosen: tuple[int, ...] = ()
    """Rows of the file to read instead, `count` of them."""

    @property
    def sources(self) -> tuple[Path, ...]:
        """Every file that shapes the samples."""
        return tuple(self.preparation.read()) if self.preparation else (self.path,)

    @property
    def rows(self) -> list[int]:
        return list(self.chosen) or [i * self.total // self.count for i in range(self.count)]

    def batches(self, sizes: Sequence[int]) -> Iterator[Arrays]:
        """Feeds of the model; batch sizes go round `sizes`. Only one batch is held in memory."""
        import numpy as np

        axes = batch_axes(self.specs)
        names = {spec.name: self.arrays[spec.name] for spec in self.specs}
        with zipfile.ZipFile(self.path) as archive:
            lengths = [LENGTHS] if self.ragged else []
            readers = {name: _RowReader(archive, name) for name in {*names.values(), *lengths}}
            done, turn = 0, 0
            rows = self.rows
            while done < len(rows):
                take = rows[done : done + max(1, sizes[turn % len(sizes)])]
                read = {name: reader.rows(take) for name, reader in readers.items()}
                feeds: Arrays = {}
                for spec in self.specs:
                    axis = axes[spec.name]
                    block = self._cut(spec, axis, read[names[spec.name]], read.get(LENGTHS))
                    sample = block[0] if axis is None else np.moveaxis(block, 0, axis)
                    feeds[spec.name] = np.asarray(sample, order="C")  # ascontiguousarray makes a scalar one-dimensional
                yield feeds
                done, turn = done + len(take), turn + 1

    def _cut(
        self, spec: TensorSpec, axis: int | None, block: NDArray[Any], lengths: NDArray[Any] | None
    ) -> NDArray[Any]:
        """Rows [samples, …] without the padding that no row of this batch needs."""
        if self.ragged is None or lengths is None or self.ragged.dim not in spec.shape:
            return block
        width = self.ragged.width(len(block), int(lengths.max()))
        own = [d for at, d in enumerate(spec.shape) if at != axis]
        return block[(slice(None), *(slice(width) if d == self.ragged.dim else slice(None) for d in own))]

    def read_labels(self) -> NDArray[np.generic] | None:
        """The labels of the samples in use, in their order; None if there are none."""
        if self.labels is None:
            return None
        import numpy as np

        with np.load(self.path, allow_pickle=False) as archive:
            labels: NDArray[np.generic] = archive[self.labels]
        return labels[self.rows]


def samples_from_json(path: Path, value: Mapping[str, Any]) -> SampleFile:
    """The samples that a plan describes, in the file that was found when it was made."""
    specs = tuple(spec_from_json(s) for s in value["specs"])
    ragged = Ragged.from_json(value["ragged"]) if "ragged" in value else None
    total, count = int(value["total"]), int(value["count"])
    return SampleFile(path, specs, value["arrays"], value.get("labels"), total, count, ragged)


def batch_dim(specs: Sequence[TensorSpec]) -> str | int:
    """The name of the batch dimension, or its length where it is fixed."""
    for spec in specs:
        if spec.shape and isinstance(spec.shape[0], str):
            return spec.shape[0]
    return next((d for spec in specs for d in spec.shape[:1]), 1)


def batch_axes(specs: Sequence[TensorSpec]) -> dict[str, int | None]:
    """Where each tensor has the batch dimension; None for one that has none (its sample is fed as it is).

    A fixed batch above 1 that is not axis 0 of every input can not be told from other lengths: then a sample is all
    that one run takes, for every input.
    """
    dim = batch_dim(specs)
    if isinstance(dim, int):
        stacked = dim == 1 or all(s.shape[:1] == (dim,) for s in specs)
        return {s.name: 0 if stacked and s.shape[:1] == (dim,) else None for s in specs}
    return {s.name: s.shape.index(dim) if dim in s.shape else None for s in specs}


def output_axes(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> dict[str, int | None]:
    """Where each output has the batch dimension: by its name, else axis 0 if the model's batch is there."""
    dim = batch_dim(inputs)
    axes = batch_axes(inputs)
    if all(axis is None for axis in axes.values()):
        return {o.name: None for o in outputs}
    first = 0 if any(a == 0 for a in axes.values()) else None
    return {o.name: o.shape.index(dim) if dim in o.shape else (first if o.shape else None) for o in outputs}


def fixed_batch(specs: Sequence[TensorSpec]) -> int | None:
    """The only batch size that the model takes, None if it takes several."""
    if any(axis is None for axis in batch_axes(specs).values()):
        return 1
    dim = batch_dim(specs)
    return dim if isinstance(dim, int) else None


def samples_per_run(specs: Sequence[TensorSpec], dims: Mapping[str, int]) -> int:
    """How many samples one run takes where the dynamic dimensions have these lengths."""
    dim = batch_dim(specs)
    return dims.get(dim, 1) if isinstance(dim, str) else fixed_batch(specs) or 1


def open_samples(
    path: Path, specs: Sequence[TensorSpec], names: Mapping[str, str], *, samples: int | None, labels: str | None
) -> SampleFile:
    """Check the file's headers against the model's inputs. Raises `SamplesError` for the first thing that is wrong."""
    headers = read_headers(path)
    arrays = {spec.name: _array_name(path, spec, names, headers) for spec in specs}
    totals = {a: headers[a].shape[0] if headers[a].shape else 0 for a in arrays.values()}
    for spec in specs:
        _check_fit(path, spec, arrays[spec.name], headers[arrays[spec.name]], batch_axes(specs)[spec.name])
    total = next(iter(totals.values()))
    for array, count in totals.items():
        if count != total:
            raise SamplesError(f"{path}: '{array}' has {count} samples, '{next(iter(totals))}' has {total}")
    if total == 0:
        raise SamplesError(f"{path}: holds no samples", hint="axis 0 of every array counts them")
    if labels is not None:
        _check_labels(path, labels, headers, total)
    if samples is not None and samples > total:
        raise SamplesError(
            f"{path}: {samples} samples are asked for, the file has {total}", hint=f"samples: {total} at most"
        )
    count, fixed = samples or total, fixed_batch(specs)
    if fixed and count % fixed:
        whole = f"samples: {count - count % fixed}" if count > fixed else "give it more samples"
        raise SamplesError(f"{path}: {count} samples, and the model takes {fixed} at a time", hint=whole)
    return SampleFile(path, tuple(specs), arrays, labels, total, count)


def read_headers(path: Path) -> dict[str, ArrayHeader]:
    """dtype and shape of every array, without reading their contents. Pickled arrays are refused."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = [n for n in archive.namelist() if n.endswith(".npy")]
            found = {n.removesuffix(".npy"): _read_header(path, archive, n) for n in members}
    except FileNotFoundError:
        raise SamplesError(f"{path}: no such file") from None
    except (zipfile.BadZipFile, OSError) as error:
        raise SamplesError(
            f"{path}: is not a .npz file that can be read ({error})", hint="write it with numpy.savez"
        ) from None
    if not found:
        raise SamplesError(f"{path}: holds no arrays", hint="write it with numpy.savez")
    return found


def _read_header(path: Path, archive: zipfile.ZipFile, member: str) -> ArrayHeader:
    with archive.open(member) as file:
        dtype, shape, fortran = _parse_header(path, member, file)
    return ArrayHeader(dtype.name, shape, fortran)


def _parse_header(path: Path, member: str, file: IO[bytes]) -> tuple[Any, tuple[int, ...], bool]:
    from numpy.lib import format as npy

    try:
        version = npy.read_magic(file)
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, fortran, dtype = read(file)
    except ValueError as error:
        raise SamplesError(f"{path}: '{member}' does not parse: {error}") from None
    if dtype.hasobject:
        raise SamplesError(
            f"{path}: '{member.removesuffix('.npy')}' holds pickled Python objects, which could run code",
            hint="save plain numbers: numpy.savez of arrays with a numeric dtype",
        )
    return dtype, shape, fortran


class _RowReader:
    """Rows of one array of the archive in rising order, without holding the array."""

    def __init__(self, archive: zipfile.ZipFile, name: str) -> None:
        import math

        self._file = archive.open(f"{name}.npy")
        self._dtype, shape, fortran = _parse_header(Path(str(archive.filename)), f"{name}.npy", self._file)
        self._shape = shape[1:]
        self._row_bytes = self._dtype.itemsize * math.prod(self._shape)
        self._start = self._file.tell()
        self._whole: NDArray[np.generic] | None = None
        if fortran:  # rare, and its rows are not contiguous: read it whole
            import numpy as np

            self._whole = np.load(str(archive.filename))[name]

    def rows(self, indices: Sequence[int]) -> NDArray[np.generic]:
        import numpy as np

        if self._whole is not None:
            return self._whole[list(indices)]
        block = np.empty((len(indices), *self._shape), self._dtype)
        for slot, index in enumerate(indices):
            self._file.seek(self._start + index * self._row_bytes)
            raw = self._file.read(self._row_bytes)
            block[slot] = np.frombuffer(raw, self._dtype).reshape(self._shape)
        return block


def _array_name(path: Path, spec: TensorSpec, names: Mapping[str, str], headers: Mapping[str, ArrayHeader]) -> str:
    name = names.get(spec.name, spec.name)
    if name not in headers:
        hint = did_you_mean(name, headers)
        if spec.name not in names:
            hint += f"; or say which array it is: names: {{{spec.name}: …}}"
        raise SamplesError(f"{path}: holds no array '{name}' for input '{spec.name}'", hint=hint)
    return name


def _check_fit(path: Path, spec: TensorSpec, array: str, header: ArrayHeader, axis: int | None) -> None:
    if header.dtype != spec.dtype:
        raise SamplesError(
            f"{path}: '{array}' is {header.dtype}, input '{spec.name}' is {spec.dtype}",
            hint=f"correct the input's dtype, or convert the data: array.astype('{spec.dtype}')",
        )
    sample = spec.shape if axis is None else spec.shape[:axis] + spec.shape[axis + 1 :]
    fits = len(header.shape) == len(sample) + 1 and all(
        isinstance(want, str) or want == have for want, have in zip(sample, header.shape[1:], strict=True)
    )
    if not fits:
        want = ", ".join(map(str, ("samples", *sample)))
        raise SamplesError(
            f"{path}: '{array}' has shape {list(header.shape)}, input '{spec.name}' needs [{want}]",
            hint=f"correct the shape of input '{spec.name}', or write the data in that shape",
        )


def _check_labels(path: Path, labels: str, headers: Mapping[str, ArrayHeader], total: int) -> None:
    if labels not in headers:
        raise SamplesError(f"{path}: holds no array '{labels}' with the labels", hint=did_you_mean(labels, headers))
    shape = headers[labels].shape
    if not shape or shape[0] != total:
        count = shape[0] if shape else 0
        raise SamplesError(f"{path}: {count} labels in '{labels}' for {total} samples", hint="one label per sample")
