"""Rules for a recipe's precisions and mixtures of them: each check yields problems at their places."""

from __future__ import annotations

from collections.abc import Iterator

from engineworks.errors import Problem, did_you_mean
from engineworks.recipe.recipe import AUTO, CALIBRATED, FORMATS, PRECISIONS, TRIED_BY_AUTO, Mixture, Recipe
from engineworks.recipe.yaml_nodes import Node


def _precisions_are_known(recipe: Recipe, node: Node) -> Iterator[Problem]:
    known = (*PRECISIONS, *recipe.mixtures)
    for index, name in enumerate(recipe.precisions):
        if AUTO in recipe.precisions and name in TRIED_BY_AUTO:
            place = node.at(("precisions", index)).place
            yield Problem(place, f"precisions: 'auto' tries {name} anyway", "remove one of the two")
        elif name not in (*known, AUTO):
            place = node.at(("precisions", index)).place
            yield Problem(place, f"precisions: '{name}' is not a choice", did_you_mean(name, (*known, AUTO)))
    for name in recipe.accuracy.limits:
        if name not in known:
            place = node.key_place(("accuracy", "limits", name))
            yield Problem(place, f"limits for unknown precision '{name}'", did_you_mean(name, known))


def _mixtures_mix(recipe: Recipe, node: Node) -> Iterator[Problem]:
    for name, mixture in recipe.mixtures.items():
        place = node.key_place(("mixtures", name))
        if name in (*PRECISIONS, AUTO):
            yield Problem(place, f"'{name}' is a precision already: a mixture needs another name", f"e.g. my-{name}")
        if not any(getattr(mixture, field) for field in ("fp32", *FORMATS)):
            yield Problem(place, f"mixture '{name}' names no nodes", "e.g. {default: fp16, int8: [encoder/*]}")
        quantizes = any(getattr(mixture, field) for field in FORMATS)
        if mixture.fp32 and (mixture.default == "fp32" or not (mixture.default or quantizes)):
            where = node.key_place(("mixtures", name, "fp32"))
            yield Problem(
                where, f"mixture '{name}' keeps nodes in fp32 and has no default for the others", "e.g. default: fp16"
            )
        yield from _no_glob_twice(name, mixture, node)


def _no_glob_twice(name: str, mixture: Mixture, node: Node) -> Iterator[Problem]:
    fields: dict[str, str] = {}
    for field in ("fp32", *FORMATS):
        for index, glob in enumerate(getattr(mixture, field)):
            if glob in fields:
                place = node.at(("mixtures", name, field, index)).place
                yield Problem(place, f"mixture '{name}' has '{glob}' in {fields[glob]} and in {field}", "remove one")
            fields.setdefault(glob, field)


def _calibrated_have_data(recipe: Recipe, node: Node) -> Iterator[Problem]:
    if recipe.data.calibration is not None:
        return
    for index, name in enumerate(recipe.precisions):
        mixture = recipe.mixtures.get(name)
        if name in CALIBRATED or (mixture and any(getattr(mixture, field) for field in CALIBRATED)):
            place = node.at(("precisions", index)).place
            yield Problem(
                place, f"{name} needs calibration data", "add data.calibration; random numbers are never used"
            )


PRECISION_CHECKS = (_precisions_are_known, _mixtures_mix, _calibrated_have_data)
