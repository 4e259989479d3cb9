"""Changes of a recipe whose files are not all on this host, usually data that git does not keep.

Compares the recipe, its targets and the files that git keeps. A file that neither state has counts as unchanged.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from engineworks.errors import ModelError, RecipeError
from engineworks.host.git import RevisionTree
from engineworks.model.export.outline import read_outline
from engineworks.model.export.source_code import source_closure
from engineworks.plan.differences import EngineChange, RecipeChange, State, changes, evaluated_differently
from engineworks.recipe.load import read_recipe

SHAPES_NOTHING = {
    "recipe", "description", "owner", "tags", "precisions", "targets", "release", "waivers", "time_limits", "mixtures",
}  # fmt: skip
"""Fields that are in no step's key, or of which only those of one precision are."""


def compare_alone(path: Path, shown: str, problems: tuple[str, ...], tree: RevisionTree) -> RecipeChange | None:
    """Compare the recipe at `path`, which has these problems; `new` where the revision has no such recipe.

    None if the recipe or its targets are wrong in either state, or a file that git has is missing here.
    """
    try:
        now = _State(path, tree)
        then = _State(tree.then(path), tree) if tree.then(path).is_file() else None
    except RecipeError:
        return None
    if any(name in tree.tracked and not (tree.revision.repository / name).exists() for name in now.exact()):
        return None
    note = f"compared by what the recipe says: {problems[0].splitlines()[0]}" if problems else ""
    if then is None:
        why = f"it is not in {tree.revision.name}"
        engines = tuple(EngineChange(f"{now.recipe.recipe}/{e}", "new", (why,)) for e in now.engines)
        return RecipeChange(now.recipe.recipe, shown, "new", (why, note), engines)
    engines = tuple(_compare(then, now, tree))
    reasons = tuple(dict.fromkeys(reason for engine in engines for reason in engine.reasons))
    state: State = "unchanged" if all(e.state == "unchanged" for e in engines) else "changed"
    return RecipeChange(now.recipe.recipe, shown, state, (*reasons, note), engines)


class _State:
    """A recipe in one of the two states, with its targets; engines: 'precision/target'. Raises `RecipeError`."""

    def __init__(self, path: Path, tree: RevisionTree) -> None:
        self.recipe, targets = read_recipe(path)
        self._folder, self._tree = path.parent, tree
        self.targets = {target.name: target.to_json() for target in targets}
        self.engines = [f"{p}/{t}" for p in self.recipe.precisions for t in self.targets]

    def of_engine(self, engine: str) -> dict[str, Any]:
        """Return everything in the recipe that shapes an engine."""
        precision, target = engine.split("/")
        document = self.recipe.model_dump(mode="json", exclude_none=True)
        kept = {key: value for key, value in document.items() if key not in SHAPES_NOTHING}
        kept["model inputs"] = kept.pop("inputs")
        kept["accuracy"] = {k: v for k, v in kept["accuracy"].items() if k != "limits"}
        kept["performance"] = {k: v for k, v in kept["performance"].items() if k not in ("budget", "regression")}
        if precision == "fp32":
            kept.pop("calibration", None)
            kept["data"] = {k: v for k, v in kept["data"].items() if k != "calibration"}
        mixture = document.get("mixtures", {}).get(precision)
        return {**kept, "mixture": mixture, "target": self.targets[target]}

    def exact(self) -> Iterator[str]:
        """Yield names, relative to the repository, that text in the recipe may refer to."""
        return (name for _, name in self.named())

    def named(self) -> Iterator[tuple[str, str]]:
        """Yield (part of the recipe, name relative to the repository or a glob) of everything that may be a file."""
        document = self.recipe.model_dump(mode="json", exclude_none=True)
        parts = {
            "model": document["model"],
            "calibration": document["data"].get("calibration"),
            "evaluation": document["data"]["evaluation"],
            "metric": document["accuracy"].get("metric"),
        }
        for part, value in parts.items():
            for text in _strings(value):
                yield from ((part, name) for path in self._paths(text) if (name := self._tree.name_of(path)))

    def _paths(self, text: str) -> Iterator[Path]:
        module, colon, _ = text.partition(":")
        if colon:
            yield from source_closure(module, self._folder)
            return
        path = Path(os.path.normpath(self._folder / text))
        yield path
        if path.suffix == ".onnx" and path.is_file():
            try:
                yield from (path.parent / name for name in read_outline(path).external)
            except ModelError:
                return


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str) and value:
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _strings(inner)


def _compare(then: _State, now: _State, tree: RevisionTree) -> Iterator[EngineChange]:
    files = {(part, file) for state in (then, now) for part, name in state.named() for file in _differing(name, tree)}
    for engine in now.engines:
        name = f"{now.recipe.recipe}/{engine}"
        if engine not in then.engines:
            yield EngineChange(name, "new", ("the recipe did not name it",))
            continue
        reasons = [*changes(then.of_engine(engine), now.of_engine(engine))]
        fp32 = engine.startswith("fp32/")
        reasons += [f"file {file} changed" for part, file in sorted(files) if not (fp32 and part == "calibration")]
        reasons += evaluated_differently(then.recipe, now.recipe, engine.partition("/")[0])
        unique = tuple(dict.fromkeys(reasons))
        yield EngineChange(name, "changed" if unique else "unchanged", unique)
    for engine in then.engines:
        if engine not in now.engines:
            yield EngineChange(f"{now.recipe.recipe}/{engine}", "gone", ("the recipe does not name it any more",))


def _differing(name: str, tree: RevisionTree) -> list[str]:
    """Return differences that are the named file, lie in the named folder or match the glob."""
    return [d for d in tree.differing if d == name or d.startswith(f"{name}/") or fnmatchcase(d, name)]
