"""Changes since a revision, found by planning both states and comparing the documents of their steps.

A changed default, target, model, data file or metric counts like a changed recipe; a comment or an owner does not. Both
sides use this host's library versions and hardware.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from engineworks.errors import InputError, RecipeError, TargetError
from engineworks.host.file_digests import FileDigests
from engineworks.host.git import RevisionTree, checked_out, find_revision
from engineworks.plan.changed_alone import compare_alone
from engineworks.plan.differences import EngineChange, RecipeChange, State, changes, evaluated_differently
from engineworks.plan.plan import Plan, PlannedEngine, plan_recipe
from engineworks.recipe.load import LoadedRecipe, find_recipes, load_recipe
from engineworks.settings import Settings
from engineworks.store.shared import open_store
from engineworks.store.store import Store


@dataclass(frozen=True)
class Changes:
    """All compared recipes. assumed: files that recipes read but git does not keep; they count as unchanged."""

    since: str
    commit: str
    recipes: tuple[RecipeChange, ...]
    assumed: tuple[str, ...] = ()

    @property
    def to_build(self) -> tuple[RecipeChange, ...]:
        """The recipes with something to build."""
        return tuple(r for r in self.recipes if r.to_build)

    @property
    def broken(self) -> tuple[RecipeChange, ...]:
        """The recipes that could not be compared; with any, the result is incomplete."""
        return tuple(r for r in self.recipes if r.state == "broken")

    def to_json(self) -> dict[str, Any]:
        return {
            "since": self.since, "commit": self.commit, "build": [r.file for r in self.to_build],
            "recipes": [r.to_json() for r in self.recipes], "not_in_git": list(self.assumed),
        }  # fmt: skip


def find_changes(since: str, recipes: Sequence[Path] | None, settings: Settings) -> Changes:
    """Find changes between the revision `since` and the working tree, committed or not.

    recipes: files of one repository; None for those of recipes/, including deleted ones. Raises `InputError` without
    git and for an unknown revision. A recipe that is wrong now stops no other.
    """
    paths = [p.absolute() for p in recipes] if recipes else find_recipes(Path("recipes").resolve())
    folders = list(dict.fromkeys(p.parent.resolve() for p in paths)) or [Path("recipes").resolve()]
    revision = find_revision(next((f for f in folders if f.is_dir()), Path.cwd()), since)
    stray = next((f for f in folders if not f.is_relative_to(revision.repository)), None)
    if stray:
        raise InputError(f"{stray} is not in the repository {revision.repository}", hint="one repository at a time")
    paths = [p.parent.resolve() / p.name for p in paths]
    now, wrong = _now([p for p in paths if p.is_file()], settings)
    planner = _Planner(settings)
    with checked_out(revision, folders, without=[settings.artifacts]) as tree:
        before = _before(tree, folders, paths if recipes else None, settings)
        _refuse_unknown(paths, before)
        if not paths and not before:
            raise InputError("there are no recipes in recipes/, now or then", hint="name the recipe files")
        compared = [planner.compare(loaded, before.get(loaded.path), tree) for loaded in now]
        compared += [_without_files(path, error, tree) for path, error in wrong.items()]
        gone = [_gone(path, old) for path, old in before.items() if not path.is_file()]
        planner.save()
        return Changes(since, revision.commit, (*compared, *gone), _assumed(now, tree))


@dataclass(frozen=True)
class _Before:
    """A recipe at the revision, or why it could not be read. missing: only because of files that are not here."""

    loaded: LoadedRecipe | None
    why: str = ""
    missing: bool = False


def _before(
    tree: RevisionTree, folders: Sequence[Path], only: Sequence[Path] | None, settings: Settings
) -> dict[Path, _Before]:
    """Return the recipes of the revision, by their paths in the working tree."""
    roots = (*settings.data_roots, tree.revision.repository)
    recipes = {}
    for folder in folders:
        for path in find_recipes(tree.then(folder)):
            place = folder / path.name
            if only is None or place in only:
                try:
                    recipes[place] = _Before(load_recipe(path, data_roots=roots))
                except RecipeError as error:
                    recipes[place] = _Before(None, _at(str(error), tree), _only_missing(error))
    return recipes


def _at(message: str, tree: RevisionTree) -> str:
    """Write paths of the temporary tree in the message as git does: REV:path."""
    reason = message.replace(f"{tree.root}/", f"{tree.revision.name}:")
    return f"it could not be planned at {tree.revision.name}: {reason.splitlines()[0]}"


def _refuse_unknown(paths: Sequence[Path], before: Mapping[Path, _Before]) -> None:
    for path in paths:
        if not path.is_file() and path not in before:
            raise InputError(f"{path}: no such file, neither now nor then", hint="name recipe files")


def _now(paths: Sequence[Path], settings: Settings) -> tuple[list[LoadedRecipe], dict[Path, RecipeError]]:
    loaded, wrong = [], {}
    for path in paths:
        try:
            loaded.append(load_recipe(path, data_roots=settings.data_roots))
        except RecipeError as error:
            wrong[path] = error
    return loaded, wrong


def _without_files(path: Path, error: RecipeError, tree: RevisionTree) -> RecipeChange:
    """Compare a recipe that cannot be planned now without its files, if missing files are its only problem."""
    problems = tuple(str(p) for p in error.problems)
    alone = compare_alone(path, _shown(path), problems, tree) if _only_missing(error) else None
    return alone or RecipeChange(path.stem, _shown(path), "broken", problems, ())


def _only_missing(error: RecipeError) -> bool:
    return all(problem.missing for problem in error.problems)


def _gone(path: Path, before: _Before) -> RecipeChange:
    name = before.loaded.name if before.loaded else path.stem
    return RecipeChange(name, _shown(path), "gone", ("its file is gone",), ())


def _shown(path: Path) -> str:
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


class _Planner:
    """Plans both states with one digest cache and the local store only, without asking another host."""

    def __init__(self, settings: Settings) -> None:
        self._store = Store(open_store(settings).root)
        self._digests = _LinkedDigests(settings.artifacts / "digests.db")

    def save(self) -> None:
        self._digests.save()

    def compare(self, now: LoadedRecipe, before: _Before | None, tree: RevisionTree) -> RecipeChange:
        after = self._plan(now)
        if before is None:
            return _all(now, after, "new", f"it is not in {tree.revision.name}")
        if before.loaded is None:
            alone = compare_alone(now.path, now.shown, (before.why,), tree) if before.missing else None
            return alone or _all(now, after, "changed", before.why)
        old = self._plan(before.loaded)
        if isinstance(after, str):
            state: State = "unchanged" if old == after else "changed"
            return RecipeChange(now.name, now.shown, state, (f"no engine of it can be built: {after}",), ())
        if isinstance(old, str):
            return _all(now, after, "changed", _at(old, tree))
        return compare_plans(old, after)

    def _plan(self, loaded: LoadedRecipe) -> Plan | str:
        """Return the plan, or the reason why the targets refuse every engine."""
        try:
            return plan_recipe(loaded, self._store, self._digests)
        except TargetError as error:
            return str(error)


class _LinkedDigests(FileDigests):
    """Digest cache that gives a linked file the digest of the file it links to, if known."""

    def digest(self, path: Path) -> str:
        return super().digest(path.resolve())


def _all(now: LoadedRecipe, after: Plan | str, state: State, why: str) -> RecipeChange:
    ids = [e.id for e in after.engines] if isinstance(after, Plan) else []
    return RecipeChange(now.name, now.shown, state, (why,), tuple(EngineChange(i, state, (why,)) for i in ids))


def compare_plans(before: Plan, now: Plan) -> RecipeChange:
    """Compare two plans of one recipe: which engines changed, and which of their inputs changed them."""
    old = {e.id: e for e in before.engines}
    engines = [
        _compare_engines(before, old[e.id], now, e) if e.id in old else EngineChange(e.id, "new", _new(before, e))
        for e in now.engines
    ]
    ids, refused = {e.id for e in now.engines}, {r.id: r.message for r in now.refused}
    for engine in before.engines:
        if engine.id not in ids:
            why = refused.get(engine.id, "the recipe does not name it any more")
            engines.append(EngineChange(engine.id, "gone", (why,)))
    reasons = tuple(dict.fromkeys(r for e in engines for r in e.reasons))
    renamed = (f"the recipe is named {now.recipe}, it was {before.recipe}",) if now.recipe != before.recipe else ()
    state: State = "unchanged" if all(e.state == "unchanged" for e in engines) else "changed"
    return RecipeChange(now.recipe, now.loaded.shown, state, renamed or reasons, tuple(engines))


def _new(before: Plan, engine: PlannedEngine) -> tuple[str, ...]:
    refused = next((r.message for r in before.refused if r.id == engine.id), None)
    return (f"it was refused: {refused}",) if refused else ("the recipe did not name it",)


def _compare_engines(before: Plan, old: PlannedEngine, now: Plan, new: PlannedEngine) -> EngineChange:
    evaluation = evaluated_differently(before.loaded.recipe, now.loaded.recipe, new.precision)
    reasons = tuple(dict.fromkeys((*_step_reasons(before, old, now, new), *evaluation)))
    return EngineChange(new.id, "changed" if reasons else "unchanged", reasons)


def _step_reasons(before: Plan, old: PlannedEngine, now: Plan, new: PlannedEngine) -> list[str]:
    """Return the first differences in the documents of the engine's steps. A step that only reads a changed one adds
    nothing."""
    if dict(old.steps) == dict(new.steps):
        return []
    was, is_now = _documents(before, old), _documents(now, new)
    steps_by_change: dict[str, list[str]] = {}
    for step in (s for s in is_now if s in was):
        for change in changes(_own(was[step]), _own(is_now[step])):
            steps_by_change.setdefault(change, []).append(step)
    gone = [f"step '{_kind(s)}' is {'new' if s in is_now else 'gone'}" for s in sorted(was.keys() ^ is_now.keys())]
    reasons = [f"{change} ({', '.join(map(_kind, steps))})" for change, steps in steps_by_change.items()]
    return reasons + gone or ["its steps read other results"]


def _own(document: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what a step reads itself; changes in another step are reported for that step."""
    return {k: v for k, v in document.items() if k != "inputs"}


def _kind(step: str) -> str:
    return step.rpartition("/")[2]


def _documents(plan: Plan, engine: PlannedEngine) -> dict[str, Mapping[str, Any]]:
    """Return the documents of all steps that an engine needs, by step id, in the plan's order."""
    return {step.id: step.document for step in plan.needed(engine.steps.values())}


def _assumed(now: Sequence[LoadedRecipe], tree: RevisionTree) -> tuple[str, ...]:
    """Return files of these recipes that git keeps in neither state."""
    names = set()
    for loaded in now:
        files = [*loaded.files.model.values(), *loaded.files.metric.values(), *loaded.files.evaluation.sources]
        files += loaded.files.calibration.sources if loaded.files.calibration else ()
        names |= {tree.name_of(f.resolve()) or str(f) for f in files}
    return tuple(sorted(n for n in names if n not in tree.tracked and n not in tree.differing))


def only_glob(recipe: RecipeChange) -> str | None:
    """Return the glob that selects exactly the engines to build; None where only all engines match."""
    wanted = set(recipe.to_build)
    everything = {e.id for e in recipe.engines if e.state != "gone"}
    if wanted == everything:
        return None
    parts = [sorted({i.split("/")[k] for i in wanted}) for k in (1, 2)]
    globs = [f"{recipe.recipe}/{p}/{t}" for p in ("*", *parts[0]) for t in ("*", *parts[1])]
    return next((g for g in globs if {i for i in everything if fnmatchcase(i, g)} == wanted), None)
