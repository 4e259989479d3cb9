"""The files that a recipe names: inside the allowed folders, there, and fitting the model's declared inputs."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from engineworks.errors import ModelError, Problem, SamplesError
from engineworks.model.export_huggingface import find_folder, source_files, task_of
from engineworks.model.external_data import external_data_names
from engineworks.model.source_code import source_closure
from engineworks.profiles import input_specs
from engineworks.recipe.metric import python_metric
from engineworks.recipe.recipe import Recipe, Samples
from engineworks.recipe.yaml_nodes import Node
from engineworks.samples import SampleFile, batch_axes, open_samples, read_headers
from engineworks.suggest import did_you_mean

Where = tuple[str | int, ...]


@dataclass(frozen=True)
class RecipeFiles:
    """What a recipe reads, as absolute paths.

    source: the ONNX file, the factory's module file or the Hugging Face folder. model: every file that shapes the
    model, by a name that does not depend on the machine.
    """

    folder: Path
    source: Path
    model: Mapping[str, Path]
    evaluation: SampleFile
    calibration: SampleFile | None = None
    metric: Mapping[str, Path] = field(default_factory=dict)


def resolve_files(
    recipe: Recipe, node: Node, folder: Path, roots: Sequence[Path], problems: list[Problem]
) -> RecipeFiles:
    """Find every file, adding what is wrong to `problems`; the result is only whole if nothing was added."""
    finder = _Finder(node, folder, roots, problems)
    source, model = _model_files(recipe, finder)
    evaluation = finder.samples(("data", "evaluation"), recipe, recipe.data.evaluation, recipe.data.evaluation.labels)
    calibration = recipe.data.calibration
    calibrating = finder.samples(("data", "calibration"), recipe, calibration, None) if calibration else None
    metric = python_metric(recipe.accuracy.metric)
    code = finder.code(("accuracy", "metric", "python"), metric) if metric else {}
    empty = SampleFile(folder, (), {}, None, 1, 1)
    return RecipeFiles(folder, source or folder, model, evaluation or empty, calibrating, code)


def _model_files(recipe: Recipe, finder: _Finder) -> tuple[Path | None, dict[str, Path]]:
    source, at = recipe.model.source, ("model", "source")
    if source.onnx is not None:
        path = finder.file((*at, "onnx"), source.onnx)
        return path, finder.onnx_files((*at, "onnx"), path) if path else {}
    if source.huggingface is not None:
        path = finder.huggingface((*at, "huggingface"), source.huggingface, source.task)
        return path, source_files(path) if path else {}
    if source.torch is not None:
        files = finder.code((*at, "torch"), source.torch)
        for index, name in enumerate(recipe.model.files):
            extra = finder.file(("model", "files", index), name)
            if extra:
                files[name] = extra
        return next(iter(files.values()), None), files
    return None, {}


class _Finder:
    def __init__(self, node: Node, folder: Path, roots: Sequence[Path], problems: list[Problem]) -> None:
        self.node, self.folder, self.roots, self.problems = node, folder, roots, problems

    def add(self, where: Where, message: str, hint: str = "") -> None:
        self.problems.append(Problem(self.node.at(where).place, message, hint))

    def inside(self, where: Where, name: str) -> Path | None:
        """The absolute path if it lies in the repository or in a data root, symbolic links followed."""
        path = (self.folder / Path(name).expanduser()).resolve()
        if any(path.is_relative_to(root) for root in self.roots):
            return path
        hint = "move it, or add its folder to ENGINEWORKS_DATA_ROOTS"
        self.add(where, f"'{name}' leaves the repository and the data roots", hint)
        return None

    def file(self, where: Where, name: str) -> Path | None:
        path = self.inside(where, name)
        if path is None:
            return None
        if not path.is_file():
            what = "is a folder, not a file" if path.is_dir() else "no such file"
            self.add(where, f"'{name}': {what}", self._fetch_hint(path) or _near(path))
            return None
        if not os.access(path, os.R_OK):
            self.add(where, f"'{name}' can not be read", "check its permissions")
            return None
        return path

    def onnx_files(self, where: Where, path: Path) -> dict[str, Path]:
        """The ONNX file and the files that hold its weights."""
        try:
            names = external_data_names(path)
        except ModelError as error:
            self.add(where, error.message.replace(str(path), f"'{path.name}'"), error.hint)
            return {}
        found = {path.name: path}
        for name in names:
            file = (path.parent / name).resolve()
            if not file.is_relative_to(path.parent):
                self.add(
                    where, f"'{path.name}' keeps weights in '{name}', outside of its folder", "move them beside it"
                )
            elif not file.is_file():
                self.add(
                    where, f"'{path.name}' keeps weights in '{name}', which is missing", "copy it beside the model"
                )
            else:
                found[name] = file
        return found

    def huggingface(self, where: Where, name: str, task: str | None) -> Path | None:
        """A folder, else the newest snapshot of the id in the local cache; its task must be one that we export."""
        if (self.folder / Path(name).expanduser()).is_dir() and self.inside(where, name) is None:
            return None
        try:
            found = find_folder(name, self.folder)
            task_of(found, task)
        except ModelError as error:
            fetch = self._fetch_hint((self.folder / name).resolve())
            self.add(where, error.message, fetch or error.hint)
            return None
        return found

    def code(self, where: Where, factory: str) -> dict[str, Path]:
        """The source files of `module:function`: its module and what that imports from beside the recipe."""
        module = factory.partition(":")[0]
        files = source_closure(module, self.folder)
        if not files:
            expected = f"expected {module.replace('.', '/')}.py in {self.folder.name}/"
            self.add(where, f"no module '{module}' beside the recipe", expected)
        return {f.relative_to(self.folder).as_posix(): f for f in files}

    def samples(self, where: Where, recipe: Recipe, samples: Samples, labels: str | None) -> SampleFile | None:
        path = self.file((*where, "npz"), samples.npz)
        if path is None:
            return None
        try:
            found = open_samples(path, input_specs(recipe), samples.names, samples=samples.samples, labels=labels)
            for message in _outside_profiles(recipe, found):
                self.add((*where, "npz"), message, "widen a profile under 'shapes', or change the data")
            return found
        except SamplesError as error:
            self.add((*where, "npz"), error.message.replace(str(path), samples.npz), error.hint)
            return None

    @staticmethod
    def _fetch_hint(path: Path) -> str:
        """Data that is too large for git is fetched by a script beside the recipes."""
        return "run 'make fetch' to get the data of the examples" if "fetched" in path.parts else ""


def _near(path: Path) -> str:
    """What there is in place of a file that is not there."""
    if not path.parent.is_dir():
        return f"there is no folder {path.parent.name}/ either; paths are relative to the recipe"
    if path.is_dir():
        return "name a file in it"
    beside = [p.name for p in path.parent.iterdir() if p.suffix == path.suffix and p.is_file()]
    return did_you_mean(path.name, beside) if beside else f"there is no {path.suffix or 'such'} file in its folder"


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
