"""A night: its recipes, the work to do for each, and the outcome of every engine. Plain values."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

from engineworks.errors import EngineworksError, InputError
from engineworks.measure.check import Check, deciding, message_of
from engineworks.recipe.load import LoadedRecipe, find_recipes, load_recipe
from engineworks.report.palette import precision_of

RecipeStatus = Literal["unchanged", "built", "refused", "lost"]
"""Of a recipe. unchanged: nothing to do. refused: its file, data or targets are wrong. lost: its build ended without a
result."""


GOOD = ("pass", "pass (waived)", "unmeasured", "refused")
"""Outcomes of an engine in a good night; refused engines are those that their targets do not support."""


@dataclass(frozen=True)
class Chosen:
    """A recipe of the night: loaded, or the error that prevents it."""

    path: Path
    loaded: LoadedRecipe | None
    error: EngineworksError | None = None

    @property
    def name(self) -> str:
        return self.loaded.name if self.loaded else self.path.stem

    @property
    def data(self) -> Path | None:
        """The file of its evaluation data; of several files the first."""
        evaluation = self.loaded.files.evaluation if self.loaded else None
        return evaluation.path if evaluation else None


@dataclass(frozen=True)
class EngineNight:
    """The outcome of an engine: `status` is its verdict, or refused or lost; `message` is the reason unless it
    passed, and `check` the name of the check that gave it."""

    id: str
    status: str
    message: str = ""
    check: str = ""


@dataclass(frozen=True)
class RecipeNight:
    """The outcome of a recipe. `verdicts`: the build's result as JSON (`BuildResult.to_json`), None without one.
    `data`: as in `Chosen`."""

    recipe: str
    file: str
    status: RecipeStatus
    engines: tuple[EngineNight, ...]
    message: str = ""
    verdicts: Mapping[str, Any] | None = None
    data: Path | None = None

    @property
    def is_good(self) -> bool:
        return not self.message and all(e.status in GOOD for e in self.engines)


def choose_recipes(
    folder: Path, *, globs: Sequence[str] = (), owner: str | None = None, tag: str | None = None,
    data_roots: Sequence[Path] = (),
) -> list[Chosen]:  # fmt: skip
    """Choose the folder's recipes that match: a glob over name or file, the owner (a glob), a tag.

    An unreadable file has no owner and no tags. It is always chosen if its file matches, so that no recipe is silently
    left out. Raises `InputError` if nothing matches.
    """
    chosen = [_load(path, data_roots) for path in find_recipes(folder)]
    chosen = [recipe for recipe in chosen if not globs or any(_named(recipe, glob) for glob in globs)]
    chosen = [recipe for recipe in chosen if recipe.loaded is None or _belongs(recipe.loaded, owner, tag)]
    if not chosen:
        raise InputError(f"no recipe in {folder} matches recipes={list(globs)} owner={owner} tag={tag}")
    return _unique(chosen)


def night_of_result(verdicts: Mapping[str, Any], chosen: Chosen, status: RecipeStatus) -> RecipeNight:
    """Return every engine's outcome in a build's result (as JSON)."""
    engines = [
        EngineNight(e["id"], _status(e), str(e["error"] or check.message), check.name)
        for e in verdicts["engines"]
        for check in [deciding(map(Check.from_json, e["checks"])) or Check("", "pass", "")]
    ]
    engines += [EngineNight(r["id"], "refused", message_of(r)) for r in verdicts["refused"]]
    file = str(chosen.path)
    return RecipeNight(verdicts["recipe"], file, status, tuple(engines), verdicts=verdicts, data=chosen.data)


def night_without_result(chosen: Chosen, status: RecipeStatus, message: str) -> RecipeNight:
    """Return a recipe without a result: all its engines have the same outcome."""
    ids: list[str] = []
    if chosen.loaded is not None:
        recipe = chosen.loaded.recipe
        ids = [f"{chosen.name}/{p}/{t.name}" for p in recipe.precisions for t in chosen.loaded.targets]
    engines = tuple(EngineNight(engine_id, status, message) for engine_id in ids)
    return RecipeNight(chosen.name, str(chosen.path), status, engines, message or status)


def count_outcomes(recipes: Iterable[RecipeNight], *, not_part: int = 0) -> str:
    """Return e.g. '3 recipes (2 unchanged, 1 built), 60 engines (57 pass, 3 fail); 2 recipes not part of this run'."""
    recipes = list(recipes)
    engines = [e.status for r in recipes for e in r.engines]
    counts = f"{_counted('recipe', [r.status for r in recipes])}, {_counted('engine', engines)}"
    return f"{counts}; {not_part} recipe{'' if not_part == 1 else 's'} not part of this run" if not_part else counts


def lines_of(recipes: Iterable[RecipeNight]) -> list[str]:
    """Yield one line for every engine; a recipe without engines gets its own line."""
    lines = []
    for recipe in recipes:
        lines += [f"{e.id}: {e.status}" + (f" · {e.message}" if e.message else "") for e in recipe.engines]
        if not recipe.engines:
            lines.append(f"{recipe.recipe}: {recipe.status} · {recipe.message}")
    return lines


def causes_of(recipes: Iterable[RecipeNight]) -> list[str]:
    """Return one line for each reason of failures, the one of most engines first, with its likely cause.

    Engines that fail for one reason are one line. So are those that fail the check which every fp32 engine of their
    recipe fails, on the same data: a broken data set that fails twelve engines, of several recipes and each with a
    number of its own, is one line.
    """
    by_cause: dict[str, list[tuple[str, str]]] = {}
    for recipe in recipes:
        for cause, name, message in _reasons(recipe):
            by_cause.setdefault(cause, []).append((name, message))
    lines = []
    for failures in sorted(by_cause.values(), key=lambda failures: -len(failures)):
        name, message = failures[0]
        more = f" and {len(failures) - 1} more" if len(failures) > 1 else ""
        lines.append(f"{name}{more}: {message}")
    return lines


def _reasons(recipe: RecipeNight) -> Iterator[tuple[str, str, str]]:
    """Yield each failure's cause (equal texts are one cause), its engine or recipe, and its message: the status, and
    the reason with the likely cause."""
    bad = [e for e in recipe.engines if recipe.message or e.status not in GOOD]
    if not bad and recipe.message:
        cause = re.sub(rf"^{re.escape(recipe.file)}:\d+:\d+: ", "", recipe.message)  # files share what they name
        yield cause, recipe.recipe, f"{recipe.status} · {recipe.message}"
    plain = _failed_by_all_fp32(recipe.engines)
    calibration = (recipe.verdicts or {}).get("calibration", ())
    warned = next((str(warning) for health in calibration for warning in health["warnings"]), "")
    for engine in sorted(bad, key=lambda e: e is not plain):
        if plain is not None and (engine.status, engine.check) == ("fail", plain.check):
            data = f"the evaluation data{f' ({recipe.data.name})' if recipe.data else ''}"
            message = f"fail · {plain.message} Likely cause: {data} or the model, for fp32 fails too."
            cause = f"{plain.check} on {recipe.data}" if recipe.data else message
        else:
            quantized = engine.status == "fail" and precision_of(engine.id) not in ("fp32", "fp16", "bf16")
            reason = f"{engine.message} Likely cause: {warned}." if quantized and warned else engine.message
            cause = message = engine.status + (f" · {reason}" if reason else "")
        yield cause, engine.id, message


def _failed_by_all_fp32(engines: Sequence[EngineNight]) -> EngineNight | None:
    """An fp32 engine, where all with a verdict fail one accuracy check that an engine of another precision fails."""
    evaluated = [e for e in engines if precision_of(e.id) == "fp32" and e.status not in ("unmeasured", "refused")]
    failed = {(e.status, e.check) for e in evaluated}
    ((status, check),) = failed if len(failed) == 1 else {("", "")}
    others = any((e.status, e.check) == (status, check) for e in engines if precision_of(e.id) != "fp32")
    return evaluated[0] if status == "fail" and check.startswith(("metric", "cosine")) and others else None


def _load(path: Path, data_roots: Sequence[Path]) -> Chosen:
    try:
        return Chosen(path, load_recipe(path, data_roots=data_roots))
    except EngineworksError as error:
        return Chosen(path, None, error)


def _named(recipe: Chosen, glob: str) -> bool:
    return fnmatchcase(recipe.name, glob) or fnmatchcase(str(recipe.path), glob) or fnmatchcase(recipe.path.name, glob)


def _belongs(loaded: LoadedRecipe, owner: str | None, tag: str | None) -> bool:
    owned = owner is None or fnmatchcase(loaded.recipe.owner, owner)
    return owned and (tag is None or tag in loaded.recipe.tags)


def _unique(chosen: Sequence[Chosen]) -> list[Chosen]:
    """Refuse the later of two recipes with one name, because they would overwrite each other's record."""
    first_paths: dict[str, Path] = {}
    unique = []
    for recipe in chosen:
        first = first_paths.setdefault(recipe.name, recipe.path)
        clash = InputError(f"{recipe.path}: the name '{recipe.name}' is also that of {first}", hint="rename one")
        unique.append(recipe if first == recipe.path or recipe.error else Chosen(recipe.path, None, clash))
    return unique


def _status(engine: Mapping[str, Any]) -> str:
    return f"{engine['verdict']} (waived)" if engine["waived"] and engine["verdict"] == "pass" else engine["verdict"]


def _counted(noun: str, statuses: Sequence[str]) -> str:
    parts = ", ".join(f"{count} {status}" for status, count in Counter(statuses).most_common())
    return f"{len(statuses)} {noun}{'' if len(statuses) == 1 else 's'}" + (f" ({parts})" if parts else "")
