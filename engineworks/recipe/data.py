"""The samples that a recipe names: arrays, texts or images, found and checked against the model's inputs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from glob import glob, has_magic
from pathlib import Path
from typing import Literal

from engineworks.errors import Keys, SamplesError
from engineworks.recipe.batch import batch_axes
from engineworks.recipe.datasets.pictures import BY_FOLDER, plan_images
from engineworks.recipe.datasets.preparation import PYTHON_SLICES
from engineworks.recipe.datasets.tables import SUFFIXES
from engineworks.recipe.datasets.text import plan_text
from engineworks.recipe.file_lookup import Finder, FoundModel
from engineworks.recipe.npz import read_headers
from engineworks.recipe.profiles import dynamic_dims, evaluation_batches, input_specs
from engineworks.recipe.recipe import Evaluation, Recipe, Samples
from engineworks.recipe.samples import SampleFile, open_samples


def find_samples(
    finder: Finder, part: Literal["calibration", "evaluation"], recipe: Recipe, samples: Samples, model: FoundModel
) -> SampleFile | None:
    """The samples; None if something is wrong, which the finder notes."""
    found = _find(finder, ("data", part), recipe, samples, model)
    sizes = evaluation_batches(recipe)
    if found is not None and part == "evaluation" and not found.fills(sizes):
        finder.add(("data", part), *_unfilled(found, sizes))
    return found


def _unfilled(data: SampleFile, sizes: Sequence[int]) -> tuple[str, str]:
    """The problem of samples that do not fill the profiles' batches, and a hint."""
    allowed = f"{min(sizes)}" if min(sizes) == max(sizes) else f"{min(sizes)} to {max(sizes)}"
    of_each = "" if not data.more else ", of one file each"
    fewer = data.filling(data.count, sizes)
    hint = f"samples: {fewer}, or " if fewer else "give it more samples, or "
    problem = f"{data.count} samples do not fill batches of {allowed}{of_each}: the profiles allow no others"
    return problem, hint + "lower the minimum batch of a profile"


def _find(finder: Finder, where: Keys, recipe: Recipe, samples: Samples, model: FoundModel) -> SampleFile | None:
    slices = samples.slices if isinstance(samples, Evaluation) else None
    if slices is not None and slices.startswith(PYTHON_SLICES):
        found = _find(finder, where, recipe, samples.model_copy(update={"slices": None}), model)
        return replace(found, slices=slices) if found else None
    search = _Search(finder, where, recipe, samples, model)
    if samples.text is not None:
        return search.text(samples.text)
    if samples.images is not None:
        return search.images(samples.images)
    return None if samples.npz is None else search.arrays(samples.npz)


@dataclass(frozen=True)
class _Search:
    """Looks up the samples of one part of a recipe. where: that part."""

    finder: Finder
    where: Keys
    recipe: Recipe
    samples: Samples
    model: FoundModel

    @property
    def labels(self) -> str | None:
        return self.samples.labels if isinstance(self.samples, Evaluation) else None

    @property
    def slices(self) -> str | None:
        return self.samples.slices if isinstance(self.samples, Evaluation) else None

    def arrays(self, npz: Sequence[str]) -> SampleFile | None:
        finder, recipe, samples = self.finder, self.recipe, self.samples
        files = _npz_files(finder, (*self.where, "npz"), npz)
        if files is None:
            return None
        try:
            opened = open_samples(
                list(files), input_specs(recipe), samples.names,
                samples=samples.samples, labels=self.labels, slices=self.slices,
            )  # fmt: skip
            hint = "widen a profile under 'shapes', or change the data"
            if recipe.batch is None and not any(d.lower().startswith("batch") for d in dynamic_dims(recipe)):
                hint += ", or say which dimension counts samples, e.g. batch: n"
            for path, message in _outside_profiles(recipe, opened):
                place, shown = files[path]
                named = f"'{shown}': {message}" if opened.more else message
                finder.add(place, named, hint)
            return opened
        except SamplesError as error:
            path = next((file for file in files if error.message.startswith(f"{file}: ")), next(iter(files)))
            place, shown = files[path]
            place = (*self.where, error.key) if error.key else place
            finder.add(place, error.message.replace(str(path), shown), error.hint, error.about)
            return None

    def text(self, text: str) -> SampleFile | None:
        finder, samples = self.finder, self.samples
        path = finder.file((*self.where, "text"), text)
        tokenizer = self._folder("tokenizer", samples.tokenizer, self.model.tokenizer)
        if path is not None and path.suffix not in SUFFIXES:
            message = f"'{text}' is none of {', '.join(SUFFIXES)}"
            finder.add((*self.where, "text"), message, "one row per sample, and columns")
            return None
        if path is None or tokenizer is None:
            return None
        return finder.planned(self.where, "text", lambda: plan_text(
            path, input_specs(self.recipe), columns=samples.columns, label=self.labels, slices=self.slices,
            tokenizer=tokenizer, model=_config(self.model), names=samples.names, max_length=samples.max_length,
            padding=samples.padding, profiles=self.recipe.shapes, samples=samples.samples,
        ))  # fmt: skip

    def images(self, images: str) -> SampleFile | None:
        finder, labels = self.finder, self.labels
        folder = finder.subfolder((*self.where, "images"), images)
        processor = self._folder("processor", self.samples.processor, self.model.processor)
        by_file = labels is not None and labels != BY_FOLDER
        file = finder.file((*self.where, "labels"), labels) if by_file and labels is not None else None
        if folder is None or processor is None or (by_file and file is None):
            return None
        return finder.planned(self.where, "images", lambda: plan_images(
            folder, input_specs(self.recipe), processor=processor, model=_config(self.model), labels=labels,
            label_file=file, slices=self.slices, samples=self.samples.samples,
        ))  # fmt: skip

    def _folder(self, key: str, given: str | None, own: Path | None) -> Path | None:
        """The folder that the recipe names, else the model's folder."""
        if given is not None:
            return self.finder.subfolder((*self.where, key), given)
        if own is None and self.model.path is not None:
            part = ".".join(map(str, self.where))
            self.finder.add(self.where, f"the model brings no {key}", f"name its folder: {part}.{key}: FOLDER")
        return own


def _npz_files(finder: Finder, where: Keys, npz: Sequence[str]) -> dict[Path, tuple[Keys, str]] | None:
    """Every file, with its place in the recipe and its name for messages; None if one is missing."""
    files: dict[Path, tuple[Keys, str]] = {}
    readable = True
    for index, pattern in enumerate(npz):
        place = (*where, index) if len(npz) > 1 else where
        for name in _matching(finder, place, pattern):
            path = finder.file(place, name)
            readable = readable and path is not None
            if path in files:
                finder.add(place, f"duplicate file '{name}' in npz", "remove one")
                readable = False
            elif path is not None:
                files[path] = (place, name)
    return files if readable and files else None


def _matching(finder: Finder, where: Keys, pattern: str) -> list[str]:
    """The files that a glob matches, sorted; a name without wildcards matches itself."""
    if not has_magic(pattern) or (finder.folder / pattern).exists():
        return [pattern]
    matches = sorted(glob(str(Path(pattern).expanduser()), root_dir=finder.folder, recursive=True))  # noqa: PTH207 - '../x'
    if not matches:
        hint = finder.fetch_hint((finder.folder / pattern).resolve()) or "paths are relative to the recipe"
        finder.add(where, f"'{pattern}': no file matches", hint, missing=True)
    return matches


def _config(model: FoundModel) -> Path | None:
    """The folder whose config.json names the model's classes."""
    return model.path if model.kind == "huggingface" else None


def _outside_profiles(recipe: Recipe, samples: SampleFile) -> Iterator[tuple[Path, str]]:
    """Lengths of the data (all but the batch) that no profile allows, each with its file."""
    axes = batch_axes(samples.specs)
    for path in samples.paths:
        headers = read_headers(path)
        for spec in samples.specs:
            array = samples.arrays[spec.name]
            dims = [d for axis, d in enumerate(spec.shape) if axis != axes[spec.name]]
            for dim, length in zip(dims, headers[array].shape[1:], strict=True):
                ranges = [triples[dim] for triples in recipe.shapes.values() if isinstance(dim, str) and dim in triples]
                if ranges and not any(low <= length <= high for low, _, high in ranges):
                    yield path, f"'{array}' has {dim} {length}, which no profile allows"
