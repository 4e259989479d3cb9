"""`precisions: auto`: the precisions that a build tries, and the limits that they must meet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from engineworks.recipe.decoder import DECODER_PRECISIONS
from engineworks.recipe.recipe import AUTO, CALIBRATED, PRECISIONS, TRIED_BY_AUTO, Limits, Recipe

DEFAULT_COSINES: Mapping[str, float] = {"fp32": 0.99999, "fp16": 0.9999, "bf16": 0.999}
"""Cosine limits of the float precisions if neither the recipe nor `_defaults.yaml` gives one.

The shapes check uses the same values.
"""

QUANTIZED_COSINE = 0.98
QUANTIZED_COSINE_ALONE = 0.99
"""Without a task metric, only the cosine shows the loss from quantization."""
QUANTIZED_METRIC_RATIO = 0.99


@dataclass(frozen=True)
class Auto:
    """The meaning of `auto` in one recipe.

    tried: precisions for every target that supports them, with the mixtures listed next to `auto`. untried: reasons, by
    precision. built_in: precisions whose limits come from this module.
    """

    tried: tuple[str, ...]
    untried: Mapping[str, str] = field(default_factory=dict)
    built_in: frozenset[str] = frozenset()


def expand(recipe: Recipe) -> tuple[Recipe, Auto | None]:
    """The recipe with the precisions that `auto` means, each with limits; unchanged without `auto`."""
    if AUTO not in recipe.precisions:
        return recipe, None
    blind = recipe.data.calibration is None
    decoder = recipe.model.decoder is not None
    untried: dict[str, str] = {
        p: "it needs calibration data, and data.calibration names none" for p in CALIBRATED if blind and not decoder
    }
    plain: tuple[str, ...] = tuple(p for p in (DECODER_PRECISIONS if decoder else TRIED_BY_AUTO) if p not in untried)
    tried = plain + tuple(p for p in recipe.precisions if p != AUTO and p not in plain)
    known: Mapping[str, Limits] = recipe.accuracy.limits
    missing = [p for p in plain if p not in known or not known[p].model_fields_set]
    metric = recipe.accuracy.metric is not None
    limits = {**known, **{p: default_limits(p, metric=metric) for p in missing}}
    accuracy = recipe.accuracy.model_copy(update={"limits": limits})
    expanded = recipe.model_copy(update={"precisions": tried, "accuracy": accuracy})
    return expanded, Auto(tried, untried, frozenset(missing))


def named_precisions(recipe: Recipe) -> tuple[str, ...]:
    """Precisions that engines of the recipe may have, expanded or not."""
    return tuple(dict.fromkeys((*recipe.precisions, *PRECISIONS))) if AUTO in recipe.precisions else recipe.precisions


def default_limits(precision: str, *, metric: bool) -> Limits:
    """Built-in limits of a plain precision. metric: whether the recipe has a task metric."""
    if precision in DEFAULT_COSINES:
        return Limits(cosine=DEFAULT_COSINES[precision])
    if metric:
        return Limits(cosine=QUANTIZED_COSINE, metric_ratio=QUANTIZED_METRIC_RATIO)
    return Limits(cosine=QUANTIZED_COSINE_ALONE)
