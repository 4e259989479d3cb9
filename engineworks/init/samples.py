"""The user's own data for a new recipe: which array feeds which input, which are labels, which lengths they have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from engineworks.errors import SamplesError
from engineworks.init.draft import DataFile
from engineworks.samples import ArrayHeader, batch_axes, read_headers
from engineworks.suggest import did_you_mean
from engineworks.tensors import TensorSpec


@dataclass(frozen=True)
class OwnData:
    """file: for the recipe. lengths: of the dimensions that the arrays fix. classes: the labels are whole numbers."""

    file: DataFile
    lengths: Mapping[str, int] = field(default_factory=dict)
    classes: bool = False


def match_samples(path: Path, named: str, specs: Sequence[TensorSpec], labels: str | None, *, guess: bool) -> OwnData:
    """Match the arrays of the file with the inputs: by name, else the only array with the input's dtype and rank.

    guess: take the only array that is left, one whole number per sample, for labels. Raises `SamplesError`.
    """
    headers = read_headers(path)
    if labels is not None and labels not in headers:
        raise SamplesError(f"{path}: holds no array '{labels}'", hint=did_you_mean(labels, headers))
    axes = batch_axes(specs)
    arrays = {s.name: _array(path, s, axes[s.name], headers, labels) for s in specs}
    rest = [name for name in headers if name not in arrays.values()]
    if labels is None and guess and len(rest) == 1 and _are_classes(headers[rest[0]]):
        labels = rest[0]
    lengths: dict[str, int] = {}
    for spec in specs:
        sample = [d for axis, d in enumerate(spec.shape) if axis != axes[spec.name]]
        lengths |= {d: n for d, n in zip(sample, headers[arrays[spec.name]].shape[1:]) if isinstance(d, str)}
    names = {i: a for i, a in arrays.items() if i != a}
    return OwnData(DataFile(named, names, labels), lengths, labels is not None and _are_classes(headers[labels]))


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


def _are_classes(header: ArrayHeader) -> bool:
    return len(header.shape) == 1 and header.dtype.startswith(("int", "uint"))
