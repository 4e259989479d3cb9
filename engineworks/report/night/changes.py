"""What changed since the nights before. A recipe or an engine is compared with its own last result: what is not part of
this night is neither new, nor gone, nor fixed. Plain values in, sentences out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

MOVED = 0.05
"""Relative change of a median from which it is reported. An unchanged engine is not measured again, so a reported
median was measured again; the gate decides whether it is a regression."""

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Past:
    """What the nights before left: the last record of every recipe by name and of every engine by id, each with the end
    of its night as `at`. left_out: engines that `--only` left out of their last night. files: recipe files that there
    are now, () if unknown. absent: names of recipes that were not part of the last night."""

    recipes: Mapping[str, Row]
    engines: Mapping[str, Row]
    left_out: frozenset[str] = frozenset()
    files: tuple[str, ...] = ()
    absent: frozenset[str] = frozenset()

    def same_names(self, recipes: Sequence[Row]) -> tuple[Row, ...]:
        """A file that cannot be read hides its recipe's name: it keeps the one that it had."""
        by_file = {r["file"]: name for name, r in self.recipes.items() if r.get("file")}
        return tuple({**r, "recipe": by_file.get(r["file"], r["recipe"])} if r["error"] else r for r in recipes)

    def gone(self, recipes: Sequence[Row]) -> dict[str, str]:
        """By name, why a recipe is no more: its file is not in the folder, or has another recipe in this night."""
        names, now = {r["recipe"] for r in recipes}, {r["file"]: r["recipe"] for r in recipes if r["file"]}
        folders = {PurePath(file).parent for file in self.files}
        reasons = {}
        for name, file in ((n, r.get("file")) for n, r in self.recipes.items() if n not in names):
            if file in now:
                reasons[name] = f"{file} is recipe {now[file]} now"
            elif file and file not in self.files and PurePath(file).parent in folders:
                reasons[name] = f"{file} was removed"
        return reasons

    def still_known(self, recipes: Sequence[Row], engines: Iterable[Row], left_out: Iterable[str]) -> tuple[Row, ...]:
        """Engines that the night of these has no result of, and that are not gone either."""
        names, ids = {r["recipe"] for r in recipes}, {e["id"] for e in engines}
        wrong, gone, spared = {r["recipe"] for r in recipes if r["error"]}, self.gone(recipes), set(left_out)

        def stays(engine: str) -> bool:
            recipe = recipe_of(engine)
            return recipe not in gone and (recipe not in names or recipe in wrong or engine in spared)

        return tuple(e for i, e in self.engines.items() if i not in ids and stays(i))


def past_of(before: Mapping[str, Any] | None, files: Sequence[str] = ()) -> Past:
    """before: the JSON of the last night, None where there was none."""
    night = before or {}
    at = str(night.get("at", ""))

    def dated(*keys: str) -> Iterator[Row]:
        return ({"at": at, **row} for key in keys for row in night.get(key, ()))

    return Past(
        {r["recipe"]: r for r in dated("absent", "recipes")}, {e["id"]: e for e in dated("known", "engines")},
        frozenset(night.get("left_out", ())), tuple(files), frozenset(r["recipe"] for r in night.get("absent", ())),
    )  # fmt: skip


def recipe_of(engine: str) -> str:
    return engine.partition("/")[0]


def changes_since(
    past: Past, recipes: Sequence[Row], engines: Iterable[Row], left_out: Iterable[str] = ()
) -> Iterable[str]:
    """Sentences, those on verdicts first. left_out: engines that `--only` left out now."""
    old, new = past.engines, {e["id"]: e for e in engines}
    yield from _recipes(past, recipes)
    both = [i for i in new if i in old]
    for i in both:
        if new[i]["verdict"] != old[i]["verdict"]:
            why = f": {new[i]['why']}" if new[i]["why"] else ""
            yield f"{i}: {old[i]['verdict']} → {new[i]['verdict']}{why}"
    yield from _new(past, [e for i, e in new.items() if i not in old])
    known = {r["recipe"] for r in recipes if not r["error"]}
    spared = set(left_out)
    yield from (
        f"{i}: gone, was {e['verdict']}"
        for i, e in old.items() if i not in new and i not in spared and recipe_of(i) in known
    )  # fmt: skip
    for i in both:
        yield from _moved(i, old[i], new[i])


def _recipes(past: Past, recipes: Sequence[Row]) -> Iterable[str]:
    wrong = _wrong(past)
    for recipe in recipes:
        if recipe["error"] and recipe["recipe"] not in wrong:
            yield f"{recipe['recipe']}: no result: {recipe['error'].splitlines()[0]}"
    yield from (f"{name}: has results again" for name in sorted(r["recipe"] for r in recipes if _fixed(r, wrong, past)))
    for name, why in sorted(past.gone(recipes).items()):
        count = sum(recipe_of(i) == name for i in past.engines)
        if count or name not in wrong:
            yield f"{name}: gone with its {count} engines: {why}"


def _wrong(past: Past) -> set[str]:
    return {name for name, r in past.recipes.items() if r.get("error")}


def _fixed(recipe: Row, wrong: Set[str], past: Past) -> bool:
    """Its last night had no result, perhaps under the name of its file, for its own could not be read."""
    files = {past.recipes[name].get("file") for name in wrong} - {None, ""}
    return not recipe["error"] and (recipe["recipe"] in wrong or recipe.get("file") in files)


def _new(past: Past, engines: Iterable[Row]) -> Iterable[str]:
    """Engines of a recipe that never had a result on record are not reported next to 'has results again'."""
    silent = _wrong(past) - {recipe_of(i) for i in past.engines}
    for engine in engines:
        if engine["id"] in past.left_out:
            yield f"{engine['id']}: {engine['verdict']}, not compared: not part of the run before"
        elif recipe_of(engine["id"]) not in silent:
            yield f"{engine['id']}: new, {engine['verdict']}"


def _moved(engine: str, old: Row, new: Row) -> Iterable[str]:
    if new["digest"] and old.get("digest") and new["digest"] != old["digest"]:
        yield f"{engine}: another engine, sha256 {old['digest'][:12]} → {new['digest'][:12]}"
    was, now = old.get("latency_ms_p50"), new["latency_ms_p50"]
    if was and now and _same(old, new, "shape") and abs(now / was - 1) >= MOVED:
        yield f"{engine}: median {was:.3g} → {now:.3g} ms ({now / was - 1:+.0%})"
    was, now = old.get("metric"), new["metric"]
    if was is not None and now is not None and _same(old, new, "metric_name") and was != now:
        yield f"{engine}: metric {was:.6g} → {now:.6g}"


def _same(old: Row, new: Row, key: str) -> bool:
    """Whether two figures are of one shape or metric: another one is no change of the engine. Records without the key
    count as equal."""
    return bool(old.get(key, new.get(key)) == new.get(key))
