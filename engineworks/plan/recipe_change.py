"""What `changed` reports of a recipe and of each of its engines."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from engineworks.plan.differences import changes
from engineworks.recipe.recipe import Recipe
from engineworks.typed_json import Record

State = Literal["new", "changed", "gone", "unchanged", "broken"]
"""broken: the recipe is wrong now or lacks a file, so its engines cannot be compared."""


@dataclass(frozen=True)
class EngineChange(Record):
    """One engine: `reasons` state which inputs of its steps changed; empty for an unchanged one."""

    id: str
    state: State
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True)
class RecipeChange(Record):
    """One recipe and its engines. file: as named, relative to the current folder if it lies below it."""

    recipe: str
    file: str
    state: State
    reasons: tuple[str, ...]
    engines: tuple[EngineChange, ...]

    @property
    def to_build(self) -> tuple[str, ...]:
        """Ids of the engines that changed."""
        return tuple(e.id for e in self.engines if e.state in ("new", "changed"))


def evaluated_differently(then: Recipe, now: Recipe, precision: str) -> list[str]:
    """Compare limits and waivers. They are in no step's key: changing them only evaluates built engines again."""
    differing = changes(_evaluation_settings(then, precision), _evaluation_settings(now, precision))
    return [f"evaluated differently: {change}" for change in differing]


def _evaluation_settings(recipe: Recipe, precision: str) -> dict[str, Any]:
    """Return what only affects the evaluation of built engines of a precision: limits and waivers."""
    limits = {str(k): v.model_dump(mode="json", exclude_none=True) for k, v in recipe.accuracy.limits.items()}
    performance = recipe.performance.model_dump(mode="json", include={"budget", "regression"})
    sweep = recipe.performance.sweep
    performance["sweep.latency_ms"] = sweep.latency_ms if sweep else None
    waivers = [w.model_dump(mode="json") for w in recipe.waivers]
    return {"limits": limits.get(precision), **performance, "waivers": waivers}
