"""Whether the arrays of .npz files fit a model's inputs, labels and slices: by their headers alone.

Each check raises `SamplesError` for the first problem.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from engineworks.errors import SamplesError, did_you_mean
from engineworks.recipe.npz import ArrayHeader, read_headers
from engineworks.tensors import TensorSpec


def array_name(path: Path, spec: TensorSpec, names: Mapping[str, str], headers: Mapping[str, ArrayHeader]) -> str:
    name = names.get(spec.name, spec.name)
    if name not in headers:
        hint = did_you_mean(name, headers)
        if spec.name not in names:
            hint += f"; or say which array it is: names: {{{spec.name}: …}}"
        raise SamplesError(f"{path}: holds no array '{name}' for input '{spec.name}'", hint=hint, model_input=spec.name)
    return name


def check_fit(path: Path, spec: TensorSpec, array: str, header: ArrayHeader, axis: int | None) -> None:
    if header.dtype != spec.dtype:
        raise SamplesError(
            f"{path}: '{array}' is {header.dtype}, input '{spec.name}' is {spec.dtype}",
            hint=f"correct the input's dtype, or convert the data: array.astype('{spec.dtype}')",
            model_input=spec.name,
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
            model_input=spec.name,
        )


def check_labels(path: Path, labels: str, headers: Mapping[str, ArrayHeader], total: int) -> None:
    if labels not in headers:
        raise SamplesError(f"{path}: holds no array '{labels}' with the labels", hint=did_you_mean(labels, headers))
    shape = headers[labels].shape
    if not shape or shape[0] != total:
        count = shape[0] if shape else 0
        raise SamplesError(f"{path}: {count} labels in '{labels}' for {total} samples", hint="one label per sample")


def check_slices(path: Path, slices: str, total: int) -> None:
    """Check the array that names slices: one text or whole number per sample."""
    headers = read_headers(path)
    if slices not in headers:
        raise SamplesError(
            f"{path}: holds no array '{slices}' with slices", hint=did_you_mean(slices, headers), key="slices"
        )
    header = headers[slices]
    if header.shape != (total,):
        raise SamplesError(
            f"{path}: '{slices}' has shape {list(header.shape)} for {total} samples",
            hint="one name of a slice per sample",
            key="slices",
        )
    if not header.dtype.startswith(SLICE_TYPES):
        raise SamplesError(
            f"{path}: '{slices}' is {header.dtype}, and slices are texts or whole numbers",
            hint="cut values into ranges first, e.g. numpy.digitize",
            key="slices",
        )


SLICE_TYPES = ("str", "int", "uint", "bool")
"""Beginnings of the dtypes that name slices."""


def check_label_kinds(paths: Sequence[Path], labels: str) -> None:
    """Check that the labels of all files have one dtype and number of dimensions, because they become one array."""
    first = read_headers(paths[0])[labels]
    for path in paths[1:]:
        header = read_headers(path)[labels]
        if (header.dtype, len(header.shape)) != (first.dtype, len(first.shape)):
            raise SamplesError(
                f"{path}: '{labels}' is {header.dtype} {list(header.shape)}, in {paths[0].name} {first.dtype} "
                f"{list(first.shape)}",
                hint="write the labels of every file with one type and number of dimensions",
            )
