"""What differs between two documents, in words, and what `changed` reports of a recipe and each of its engines."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from engineworks.recipe.recipe import Recipe
from engineworks.typed_json import Record


def changes(before: Any, now: Any, path: str = "") -> Iterable[str]:
    """Yield the differences between two documents, one line each: 'params.keep changed', 'input fold changed'."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for key in sorted({*before, *now}):
            if key not in before or key not in now:
                yield f"{_described(path, key)} is {'new' if key in now else 'gone'}"
            else:
                yield from changes(before[key], now[key], f"{path}.{key}" if path else str(key))
    elif before != now:
        named = path.startswith(("inputs.", "digests.", "libraries."))  # file names hold dots too
        head, _, tail = path.partition(".") if named else path.rpartition(".")
        short = len(str(before)) <= 24 and len(str(now)) <= 24
        yield _described(head, tail) + (f" changed from {before} to {now}" if short else " changed")


def _described(path: str, key: str) -> str:
    descriptions = {"inputs": f"step '{key}'", "digests": f"file {key}", "libraries": f"version of {key}"}
    top = path.partition(".")[0]
    return descriptions.get(top) or (
        f"{path.removeprefix('params').removeprefix('.')}.{key}".lstrip(".") if path else key
    )


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
