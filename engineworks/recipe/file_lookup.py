"""Look up the files that a recipe names; note problems at their places in the recipe."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from engineworks.errors import Keys, ModelError, Problem, SamplesError, did_you_mean
from engineworks.host.regular_files import kind_of, resolved
from engineworks.model.export.from_huggingface import find_folder, task_of
from engineworks.model.export.outline import Outline, read_outline
from engineworks.model.export.source_code import source_closure
from engineworks.model.soundness import external_file, shown
from engineworks.recipe.yaml_nodes import Node

T = TypeVar("T")

SourceKind = Literal["onnx", "torch", "huggingface", "mlflow_pytorch"]


@dataclass(frozen=True)
class FoundModel:
    """A model's files.

    kind: how it is exported. path: the ONNX file, the factory's module file or the model's folder; None if not found.
    files: all files that shape it, by names that do not depend on the machine. tokenizer, processor: their folders, if
    they came with it. resolved: the current meaning of a name in a registry.
    """

    kind: SourceKind
    path: Path | None
    files: Mapping[str, Path]
    tokenizer: Path | None = None
    processor: Path | None = None
    resolved: str = ""


class Finder:
    """Looks up files, and notes problems at their places in the recipe. outline: of the ONNX file that was found."""

    def __init__(self, node: Node, folder: Path, roots: Sequence[Path], problems: list[Problem]) -> None:
        self.node, self.folder, self.roots, self.problems = node, folder, roots, problems
        self.outline: Outline | None = None

    def add(self, where: Keys, message: str, hint: str = "", about: Keys = (), *, missing: bool = False) -> None:
        self.problems.append(Problem(self.node.at(where).place, message, hint, about, missing))

    def planned(self, where: Keys, key: str, plan: Callable[[], T]) -> T | None:
        """What `plan` makes of samples; None if they do not fit, which is noted at the key that the error names."""
        try:
            return plan()
        except SamplesError as error:
            self.add((*where, error.key or key), error.message, error.hint, error.about)
            return None

    def inside(self, where: Keys, name: str) -> Path | None:
        """The absolute path if it lies in the repository or in a data root, symbolic links followed."""
        try:
            path = resolved(self.folder / Path(name).expanduser())
        except (OSError, RuntimeError) as error:  # RuntimeError: the home of a user that does not exist
            reason = error.strerror if isinstance(error, OSError) else str(error)
            self.add(where, f"'{shown(name)}' cannot be found: {reason}")
            return None
        if any(path.is_relative_to(root) for root in self.roots):
            return path
        hint = "move it, or add its folder to ENGINEWORKS_DATA_ROOTS"
        self.add(where, f"'{name}' leaves the repository and the data roots", hint)
        return None

    def file(self, where: Keys, name: str) -> Path | None:
        path = self.inside(where, name)
        if path is None:
            return None
        if not path.is_file():
            missing = not path.exists()
            what = "no such file" if missing else f"{kind_of(path.stat().st_mode)}, not a file"
            self.add(where, f"'{name}': {what}", self.fetch_hint(path) or _near(path), missing=missing)
            return None
        if not os.access(path, os.R_OK):
            self.add(where, f"'{name}' cannot be read", "check its permissions")
            return None
        return path

    def onnx_files(self, where: Keys, path: Path) -> dict[str, Path]:
        """The ONNX file and the files that hold its weights."""
        try:
            self.outline = read_outline(path)
        except ModelError as error:
            self.add(where, error.message.replace(str(path), f"'{path.name}'"), error.hint)
            return {}
        files = {path.name: path}
        for name, size in sorted(self.outline.external.items()):
            try:
                file = external_file(path.parent, name, f"'{path.name}'")
            except ModelError as error:
                self.add(where, error.message, error.hint)
                continue
            if not file.is_file():
                message = f"'{path.name}' keeps weights in '{name}', which is missing"
                self.add(where, message, "copy it beside the model", missing=True)
            elif file.stat().st_size < size:
                has = f"needs {size:,} bytes of '{name}', which has only {file.stat().st_size:,}"
                self.add(where, f"'{path.name}' {has}", "the file is cut short: copy it again")
            else:
                files[name] = file
        return files

    def huggingface(self, where: Keys, name: str, task: str | None) -> Path | None:
        """A folder, else the newest snapshot of the id in the local cache; its task must be one that can be
        exported."""
        if (self.folder / Path(name).expanduser()).is_dir() and self.inside(where, name) is None:
            return None
        try:
            model_folder = find_folder(name, self.folder)
            task_of(model_folder, task)
        except ModelError as error:
            fetch = self.fetch_hint((self.folder / name).resolve())
            self.add(where, error.message, fetch or error.hint, missing=not (self.folder / name).is_dir())
            return None
        return model_folder

    def code(self, where: Keys, factory: str) -> dict[str, Path]:
        """The source files of `module:function`: its module and the modules that it imports from next to the recipe."""
        module = factory.partition(":")[0]
        files = source_closure(module, self.folder)
        if not files:
            expected = f"expected {module.replace('.', '/')}.py in {self.folder.name}/"
            self.add(where, f"no module '{module}' beside the recipe", expected)
        return {f.relative_to(self.folder).as_posix(): f for f in files}

    def subfolder(self, where: Keys, name: str) -> Path | None:
        """The folder, if it exists."""
        path = self.inside(where, name)
        if path is not None and not path.is_dir():
            what = "is a file, not a folder" if path.is_file() else "no such folder"
            self.add(where, f"'{name}': {what}", self.fetch_hint(path), missing=not path.exists())
            return None
        return path

    @staticmethod
    def fetch_hint(path: Path) -> str:
        """The command that fetches data too large for git, or ''."""
        return "run 'make fetch' to get the data of the examples" if "fetched" in path.parts else ""


def _near(path: Path) -> str:
    """A hint about existing files, for a missing one."""
    if not path.parent.is_dir():
        return f"there is no folder {path.parent.name}/ either; paths are relative to the recipe"
    if path.is_dir():
        return "name a file in it"
    siblings = [p.name for p in path.parent.iterdir() if p.suffix == path.suffix and p.is_file()]
    return did_you_mean(path.name, siblings) if siblings else f"there is no {path.suffix or 'such'} file in its folder"
