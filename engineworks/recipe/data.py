"""The samples that a recipe names: arrays, texts or images, found and held against the model's inputs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from engineworks.datasets.pictures import BY_FOLDER, plan_images
from engineworks.datasets.tables import SUFFIXES
from engineworks.datasets.text import plan_text
from engineworks.errors import SamplesError
from engineworks.profiles import input_specs
from engineworks.recipe.finding import Finder, FoundModel, Where
from engineworks.recipe.recipe import Evaluation, Recipe, Samples
from engineworks.samples import SampleFile, batch_axes, open_samples, read_headers


def find_samples(
    finder: Finder, part: Literal["calibration", "evaluation"], recipe: Recipe, samples: Samples, model: FoundModel
) -> SampleFile | None:
    """None where something is wrong, which is noted."""
    where: Where = ("data", part)
    labels = samples.labels if isinstance(samples, Evaluation) else None
    if samples.text is not None:
        return _text(finder, where, recipe, samples, samples.text, labels, model)
    if samples.images is not None:
        return _images(finder, where, recipe, samples, samples.images, labels, model)
    return _arrays(finder, where, recipe, samples, samples.npz, labels) if samples.npz is not None else None


def _arrays(
    finder: Finder, where: Where, recipe: Recipe, samples: Samples, npz: str, labels: str | None
) -> SampleFile | None:
    path = finder.file((*where, "npz"), npz)
    if path is None:
        return None
    try:
        found = open_samples(path, input_specs(recipe), samples.names, samples=samples.samples, labels=labels)
        for message in _outside_profiles(recipe, found):
            finder.add((*where, "npz"), message, "widen a profile under 'shapes', or change the data")
        return found
    except SamplesError as error:
        finder.add((*where, "npz"), error.message.replace(str(path), npz), error.hint)
        return None


def _text(
    finder: Finder, where: Where, recipe: Recipe, samples: Samples, text: str, label: str | None, model: FoundModel
) -> SampleFile | None:
    path = finder.file((*where, "text"), text)
    tokenizer = _folder(finder, where, "tokenizer", samples.tokenizer, model.tokenizer, model)
    if path is not None and path.suffix not in SUFFIXES:
        finder.add((*where, "text"), f"'{text}' is none of {', '.join(SUFFIXES)}", "one row per sample, and columns")
        return None
    if path is None or tokenizer is None:
        return None
    try:
        return plan_text(
            path, input_specs(recipe), columns=samples.columns, label=label, tokenizer=tokenizer, model=_config(model),
            names=samples.names, max_length=samples.max_length, padding=samples.padding, profiles=recipe.shapes,
            samples=samples.samples,
        )  # fmt: skip
    except SamplesError as error:
        finder.add((*where, error.key or "text"), error.message, error.hint)
        return None


def _images(
    finder: Finder, where: Where, recipe: Recipe, samples: Samples, images: str, labels: str | None, model: FoundModel
) -> SampleFile | None:
    folder = finder.subfolder((*where, "images"), images)
    processor = _folder(finder, where, "processor", samples.processor, model.processor, model)
    by_file = labels is not None and labels != BY_FOLDER
    file = finder.file((*where, "labels"), labels) if by_file and labels is not None else None
    if folder is None or processor is None or (by_file and file is None):
        return None
    try:
        return plan_images(
            folder, input_specs(recipe), processor=processor, model=_config(model), labels=labels, label_file=file,
            samples=samples.samples,
        )  # fmt: skip
    except SamplesError as error:
        finder.add((*where, error.key or "images"), error.message, error.hint)
        return None


def _folder(
    finder: Finder, where: Where, key: str, given: str | None, own: Path | None, model: FoundModel
) -> Path | None:
    """The folder that the recipe names, else that of the model."""
    if given is not None:
        return finder.subfolder((*where, key), given)
    if own is None and model.path is not None:
        part = ".".join(map(str, where))
        finder.add(where, f"the model brings no {key}", f"name its folder: {part}.{key}: FOLDER")
    return own


def _config(model: FoundModel) -> Path | None:
    """The folder whose config.json names the model's classes."""
    return model.path if model.kind == "huggingface" else None


def _outside_profiles(recipe: Recipe, found: SampleFile) -> Iterator[str]:
    """Lengths of the data (all but the batch) that no profile allows."""
    headers, axes = read_headers(found.path), batch_axes(found.specs)
    for spec in found.specs:
        array = found.arrays[spec.name]
        dims = [d for axis, d in enumerate(spec.shape) if axis != axes[spec.name]]
        for dim, length in zip(dims, headers[array].shape[1:], strict=True):
            ranges = [triples[dim] for triples in recipe.shapes.values() if isinstance(dim, str) and dim in triples]
            if ranges and not any(low <= length <= high for low, _, high in ranges):
                yield f"'{array}' has {dim} {length}, which no profile allows"
