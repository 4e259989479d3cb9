"""The user's own data for a new recipe: which array feeds which input, which are labels, and their lengths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from engineworks.commands.init.draft import DataFile
from engineworks.errors import SamplesError, did_you_mean
from engineworks.recipe.batch import batch_axes
from engineworks.recipe.datasets.pictures import BY_FOLDER, image_names
from engineworks.recipe.datasets.tables import look_at
from engineworks.recipe.npz import ArrayHeader, read_headers
from engineworks.tensors import TensorSpec

LABEL_COLUMNS = ("label", "labels")
"""Names of the class column in common data sets."""


OTHER_LABELS = "for others leave --labels out, then write accuracy.metric and labels into the recipe"


@dataclass(frozen=True)
class OwnData:
    """file: for the recipe. lengths: of the dimensions that the arrays fix. classes: the labels are whole numbers."""

    file: DataFile
    lengths: Mapping[str, int] = field(default_factory=dict)
    classes: bool = False


def match_samples(path: Path, named: str, specs: Sequence[TensorSpec], labels: str | None, *, guess: bool) -> OwnData:
    """Match the arrays of the file with the inputs: by name, else the only array with the input's dtype and rank.

    guess: use the only array that is left, one whole number per sample, for labels. Raises `SamplesError`.
    """
    headers = read_headers(path)
    if labels is not None and labels not in headers:
        raise SamplesError(f"{path}: holds no array '{labels}' with the labels", hint=did_you_mean(labels, headers))
    axes = batch_axes(specs)
    arrays = {s.name: _array(path, s, axes[s.name], headers, labels) for s in specs}
    rest = [name for name in headers if name not in arrays.values()]
    total = headers[next(iter(arrays.values()))].shape[0]
    if labels is None and guess and len(rest) == 1 and _are_classes(headers[rest[0]], total):
        labels = rest[0]
    if labels is not None and not _are_classes(headers[labels], total):
        shape = f"{headers[labels].dtype}{list(headers[labels].shape)}"
        hint = f"labels are one whole number for each of the {total} samples; {OTHER_LABELS}"
        raise SamplesError(f"{path}: the labels '{labels}' are {shape}", hint=hint)
    lengths: dict[str, int] = {}
    for spec in specs:
        sample = [d for axis, d in enumerate(spec.shape) if axis != axes[spec.name]]
        lengths |= {d: n for d, n in zip(sample, headers[arrays[spec.name]].shape[1:]) if isinstance(d, str)}
    names = {i: a for i, a in arrays.items() if i != a}
    return OwnData(DataFile(named, names, labels), lengths, labels is not None)


def match_texts(path: Path, named: str, labels: str | None) -> OwnData:
    """Match a file of texts: the column `text`, else all that are no labels. Labels: a column of that name.

    Raises `SamplesError` if it has no columns, or more than two that may be texts.
    """
    columns, _ = look_at(path)
    if labels is not None and labels not in columns:
        raise SamplesError(f"{path}: has no column '{labels}'", hint=did_you_mean(labels, columns))
    labels = labels or next((name for name in columns if name in LABEL_COLUMNS), None)
    texts = tuple(name for name in columns if name != labels)
    if "text" in texts:
        return OwnData(DataFile(named, labels=labels, kind="text"), classes=labels is not None)
    if not 1 <= len(texts) <= 2:
        raise SamplesError(
            f"{path}: which columns are texts? It has {', '.join(columns)}", hint="name one of them 'text'"
        )
    return OwnData(DataFile(named, labels=labels, kind="text", columns=texts), classes=labels is not None)


def match_images(folder: Path, named: str, labels: str | None) -> OwnData:
    """Match a folder of images. A folder per class below it gives the labels, else a .csv file.

    Raises `SamplesError` if it holds none, or the labels are missing.
    """
    names = image_names(folder)
    if not names:
        raise SamplesError(f"{folder}: holds no images", hint="png, jpg, webp …")
    labelled = all("/" in name for name in names)
    if labels is not None and labels != BY_FOLDER:
        return OwnData(DataFile(named, labels=labels, kind="images"), classes=True)
    if labels == BY_FOLDER and not labelled:
        raise SamplesError(f"{folder}: not every image lies in a folder of its class", hint="name a .csv with --labels")
    return OwnData(DataFile(named, labels=BY_FOLDER if labelled else None, kind="images"), classes=labelled)


def _array(
    path: Path, spec: TensorSpec, axis: int | None, headers: Mapping[str, ArrayHeader], labels: str | None
) -> str:
    if spec.name in headers:
        return spec.name
    rank = len(spec.shape) + (1 if axis is None else 0)
    fits = [n for n, h in headers.items() if h.dtype == spec.dtype and len(h.shape) == rank and n != labels]
    if len(fits) != 1:
        what = f"{len(fits)} arrays of its dtype and rank" if fits else f"no {spec.dtype} array with {rank} dimensions"
        raise SamplesError(f"{path}: no array '{spec.name}', and {what}", hint="name the arrays as the model's inputs")
    return fits[0]


def _are_classes(header: ArrayHeader, total: int) -> bool:
    return header.shape == (total,) and header.dtype.startswith(("int", "uint"))
