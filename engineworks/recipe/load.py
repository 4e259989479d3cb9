"""Recipe files → recipes: read, merged with the defaults, checked, with every problem at its file:line:column."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Literal

from engineworks.engines.backends import backend
from engineworks.engines.backends.base import check_options
from engineworks.errors import InputError, Keys, Place, Problem, RecipeError, TargetError, did_you_mean
from engineworks.host.regular_files import resolved
from engineworks.model.soundness import shown as shown_name
from engineworks.recipe.auto import Auto, expand
from engineworks.recipe.cascading_errors import is_cascading
from engineworks.recipe.checks import check_recipe
from engineworks.recipe.decoder import at_context, contexts_of, drop_own_keys, is_decoder, spell_out, target_name
from engineworks.recipe.files import RecipeFiles, resolve_files
from engineworks.recipe.findings import Finding, at_value
from engineworks.recipe.recipe import Recipe
from engineworks.recipe.targets import DEFAULT_TARGETS, NamedTarget, Target, Targets
from engineworks.recipe.validation import validate, validate_rest
from engineworks.recipe.yaml_nodes import Node, merge, parse_yaml, read_text, read_yaml
from engineworks.settings import find_repository

DEFAULTS_FILE = "_defaults.yaml"
TARGETS_FILE = "_targets.yaml"


@dataclass(frozen=True)
class LoadedRecipe:
    """A checked recipe with its files (absolute paths) and its targets.

    auto: the meaning of `precisions: auto`, if given; the recipe then holds those precisions. by_context: of a decoder
    with several contexts, the same with each alone; the files are those of the longest.
    """

    recipe: Recipe
    path: Path
    shown: str
    root: Path
    files: RecipeFiles
    targets: tuple[NamedTarget, ...]
    mode: Literal["full", "smoke"] = "full"
    auto: Auto | None = None
    by_context: Mapping[int, LoadedRecipe] = field(default_factory=dict)

    def of(self, target: NamedTarget) -> LoadedRecipe:
        """Return the recipe of this target's engines: of several contexts, that of the target."""
        return self.by_context.get(target.context, self)

    @property
    def name(self) -> str:
        return self.recipe.recipe

    @property
    def engine_ids(self) -> tuple[str, ...]:
        """Engines of every precision on every target, including those that their targets refuse."""
        return tuple(f"{self.name}/{p}/{t.name}" for p in self.recipe.precisions for t in self.targets)


@dataclass(frozen=True)
class _Read:
    """A recipe before its files are looked up.

    wrong: places of values that were left out. found: problems of the checks, some of which only follow from
    `problems`.
    """

    recipe: Recipe
    node: Node
    known: Mapping[str, Target] | None
    wrong: frozenset[Keys]
    problems: list[Problem]
    found: list[Problem]

    def targets(self) -> tuple[NamedTarget, ...]:
        """The recipe's targets. Raises `RecipeError` with all problems."""
        follows = partial(is_cascading, node=self.node, wrong=self.wrong)
        problems = self.problems + [problem for problem in self.found if not follows(problem)]
        if problems or self.known is None:
            raise RecipeError(_one_each(problems))
        return tuple(
            NamedTarget(target_name(name, context), self.known[name], context)
            for name in self.recipe.targets
            for context in contexts_of(self.recipe)
        )


def load_recipe(path: Path, *, data_roots: Sequence[Path] = ()) -> LoadedRecipe:
    """Read one recipe. Raises `RecipeError` with all problems of the recipe, its defaults and its targets file."""
    refuse_outside(path, data_roots)
    folder = path.parent.resolve()
    root = find_repository(folder) or folder
    read = _read(path, data_roots)
    files = {
        context: resolve_files(at_context(read.recipe, context), read.node, folder, (root, *data_roots), read.found)
        for context in contexts_of(read.recipe)
    }
    targets = read.targets()
    recipe, auto = expand(read.recipe)
    loaded = LoadedRecipe(recipe, path.resolve(), _shown(path), root, files[max(files)], targets, auto=auto)
    each = {context: replace(loaded, recipe=at_context(recipe, context), files=files[context]) for context in files}
    return replace(loaded, by_context=each) if len(each) > 1 else loaded


def refuse_decoders(loaded: Sequence[LoadedRecipe], what: str) -> None:
    """Raises `InputError` if one of the recipes is a decoder's. what: the command, as 'blame compares'."""
    for recipe in loaded:
        if recipe.recipe.model.decoder is not None:
            raise InputError(f"{recipe.shown}: '{what}' does not know decoders yet", hint="name another recipe")


def read_recipe(path: Path) -> tuple[Recipe, tuple[NamedTarget, ...]]:
    """A recipe and its targets, whether or not the files that it names exist. Raises `RecipeError`."""
    refuse_outside(path)
    read = _read(path)
    targets = read.targets()
    return expand(read.recipe)[0], targets


def refuse_outside(path: Path, data_roots: Sequence[Path] = ()) -> None:
    """Raises `RecipeError` if the file is a symbolic link to a file outside of its repository (or folder, outside of a
    repository) and the data roots: its lines would be in messages."""
    try:
        folder, target = resolved(path.parent), resolved(path)
    except OSError as error:
        raise RecipeError([Problem(Place(shown_name(str(path))), f"cannot be read: {error.strerror}")]) from None
    roots = (find_repository(folder) or folder, *data_roots)
    if target.parent != folder and not any(target.is_relative_to(root) for root in roots):
        message = "is a link to a file outside of the repository and the data roots"
        raise RecipeError([Problem(Place(_shown(folder / path.name)), message, "copy the file")])


def _read(path: Path, data_roots: Sequence[Path] = ()) -> _Read:
    shown = _shown(path)
    node = read_yaml(path, shown)
    for companion in (path.parent / DEFAULTS_FILE, path.parent / TARGETS_FILE):
        refuse_outside(companion, data_roots)
    defaults = path.parent / DEFAULTS_FILE
    if os.path.lexists(defaults):  # a pipe or a broken link of this name is no missing file
        node = merge(node, read_yaml(defaults, _shown(defaults)))
    problems = list(_refuse_nameless_mixtures(node))
    if is_decoder(node):
        problems += drop_own_keys(node)
        node = spell_out(node)
    known = _load_targets(path.parent, problems)
    recipe, wrong = validate(Recipe, node, problems), frozenset[Keys]()
    if recipe is None:
        recipe, wrong = validate_rest(node)
    if recipe is None:
        raise RecipeError(_one_each(problems))
    findings = [*check_recipe(recipe), *(_unknown_targets(recipe, known) if known is not None else ())]
    return _Read(recipe, node, known, wrong, problems, [finding.problem(node) for finding in findings])


def load_recipes(paths: Sequence[Path], *, data_roots: Sequence[Path] = ()) -> list[LoadedRecipe]:
    """Read several recipes; one `RecipeError` holds the problems of all files."""
    loaded: list[LoadedRecipe] = []
    problems: list[Problem] = []
    for path in paths:
        try:
            loaded.append(load_recipe(path, data_roots=data_roots))
        except RecipeError as error:
            problems.extend(error.problems)
    by_name: dict[str, LoadedRecipe] = {}
    for recipe in loaded:
        first = by_name.setdefault(recipe.name, recipe)
        if first.path != recipe.path:
            message = f"the name '{recipe.name}' is also that of {first.shown}"
            problems.append(Problem(Place(recipe.shown, 1, 1), message, "rename one"))
    if problems:
        raise RecipeError(list(dict.fromkeys(problems)))
    return loaded


def find_recipes(folder: Path) -> list[Path]:
    """Every recipe in the folder: its .yaml files, except those whose names begin with '_'."""
    return sorted(p for p in folder.glob("*.yaml") if not p.name.startswith("_"))


def load_targets(folder: Path) -> Mapping[str, Target]:
    """The targets of the recipes in this folder. Raises `RecipeError` with every problem of the file."""
    problems: list[Problem] = []
    targets = _load_targets(folder, problems)
    if problems or targets is None:
        raise RecipeError(problems)
    return targets


def _shown(path: Path) -> str:
    """The path as messages name it: relative to the current folder if it lies below it."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except (ValueError, RuntimeError):  # RuntimeError: a loop of links
        return str(path)


def _load_targets(folder: Path, problems: list[Problem]) -> Mapping[str, Target] | None:
    """The targets; None if the file is wrong, with the reasons added to `problems`."""
    path = folder / TARGETS_FILE
    if not os.path.lexists(path):
        return DEFAULT_TARGETS
    shown = _shown(path)
    try:
        targets, target_problems = _parse_targets(read_text(path, shown), shown)
    except RecipeError as error:
        problems.extend(error.problems)
        return None
    problems.extend(target_problems)
    return targets


@lru_cache(maxsize=4)
def _parse_targets(text: str, shown: str) -> tuple[Mapping[str, Target] | None, tuple[Problem, ...]]:
    """The targets that the text names, and its problems: the same for all recipes of a folder."""
    node, problems = parse_yaml(text, shown), list[Problem]()
    read = validate(Targets, node, problems)
    if read:
        problems.extend(_wrong_options(read, node))
    return (read.targets if read else None), tuple(problems)


def _wrong_options(targets: Targets, node: Node) -> Iterator[Problem]:
    for name, target in targets.targets.items():
        for option, value in target.options.items():
            module = backend(target.backend)
            try:
                check_options(module.TITLE, {option: value}, module.OPTIONS)
            except TargetError as error:
                yield Problem(node.key_place(("targets", name, "options", option)), error.message, error.hint)


def _unknown_targets(recipe: Recipe, known: Mapping[str, Target]) -> Iterator[Finding]:
    for index, name in enumerate(recipe.targets):
        if name not in known:
            yield at_value(("targets", index), f"unknown target '{name}'", did_you_mean(name, known))


def _refuse_nameless_mixtures(node: Node) -> Iterator[Problem]:
    listed = node.get("precisions")
    if listed is None:
        return
    items = listed.value if isinstance(listed.value, list) else [listed]
    for item in items:
        if isinstance(item.value, dict):
            how = "mixtures: {NAME: {default: fp16, int8: [GLOB]}}, and NAME here"
            yield Problem(item.place, "a mixture of precisions needs a name", how)
            item.value = "fp32"


def _one_each(problems: Sequence[Problem]) -> list[Problem]:
    """The first problem of every place: a second one mostly repeats the first in other words."""
    first: dict[Place, Problem] = {}
    for problem in problems:
        first.setdefault(problem.place, problem)
    return list(first.values())
