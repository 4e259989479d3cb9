"""Rules for a recipe's precisions and mixtures of them: each check yields what is wrong and where."""

from __future__ import annotations

from collections.abc import Iterator

from engineworks.errors import did_you_mean
from engineworks.recipe.findings import Finding, at_key, at_value
from engineworks.recipe.recipe import AUTO, CALIBRATED, FORMATS, PRECISIONS, TRIED_BY_AUTO, Mixture, Recipe


def _precisions_are_known(recipe: Recipe) -> Iterator[Finding]:
    known = (*PRECISIONS, *recipe.mixtures)
    for index, name in enumerate(recipe.precisions):
        if AUTO in recipe.precisions and name in TRIED_BY_AUTO:
            yield at_value(("precisions", index), f"precisions: 'auto' tries {name} anyway", "remove one of the two")
        elif name not in (*known, AUTO):
            hint = did_you_mean(name, (*known, AUTO))
            yield at_value(("precisions", index), f"precisions: '{name}' is not a choice", hint)
    for name in recipe.accuracy.limits:
        if name not in known:
            hint = did_you_mean(name, known)
            yield at_key(("accuracy", "limits", name), f"limits for unknown precision '{name}'", hint)


def _mixtures_mix(recipe: Recipe) -> Iterator[Finding]:
    for name, mixture in recipe.mixtures.items():
        path = ("mixtures", name)
        if name in (*PRECISIONS, AUTO):
            yield at_key(path, f"'{name}' is a precision already: a mixture needs another name", f"e.g. my-{name}")
        if not any(getattr(mixture, field) for field in ("fp32", *FORMATS)):
            yield at_key(path, f"mixture '{name}' names no nodes", "e.g. {default: fp16, int8: [encoder/*]}")
        quantizes = any(getattr(mixture, field) for field in FORMATS)
        if mixture.fp32 and (mixture.default == "fp32" or not (mixture.default or quantizes)):
            message = f"mixture '{name}' keeps nodes in fp32 and has no default for the others"
            yield at_key((*path, "fp32"), message, "e.g. default: fp16")
        yield from _no_glob_twice(name, mixture)


def _no_glob_twice(name: str, mixture: Mixture) -> Iterator[Finding]:
    fields: dict[str, str] = {}
    for field in ("fp32", *FORMATS):
        for index, glob in enumerate(getattr(mixture, field)):
            if glob in fields:
                path = ("mixtures", name, field, index)
                yield at_value(path, f"mixture '{name}' has '{glob}' in {fields[glob]} and in {field}", "remove one")
            fields.setdefault(glob, field)


def _calibrated_have_data(recipe: Recipe) -> Iterator[Finding]:
    if recipe.data.calibration is not None:
        return
    for index, name in enumerate(recipe.precisions):
        mixture = recipe.mixtures.get(name)
        if name in CALIBRATED or (mixture and any(getattr(mixture, field) for field in CALIBRATED)):
            hint = "add data.calibration; random numbers are never used"
            yield at_value(("precisions", index), f"{name} needs calibration data", hint)


PRECISION_CHECKS = (_precisions_are_known, _mixtures_mix, _calibrated_have_data)
