"""What of a recipe shapes a package: packages are written from this value, and a step's document holds it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from engineworks.recipe.load import LoadedRecipe
from engineworks.recipe.profiles import input_specs
from engineworks.recipe.recipe import DynamicBatching, Recipe, Triton
from engineworks.recipe.release import largest_batch
from engineworks.tensors import TensorSpec, spec_from_json
from engineworks.tracking.aliases import registered_name


@dataclass(frozen=True)
class PackageSettings:
    """model: name of the registered model, with which the models' names begin. max_batch: 0 where Triton does no
    batching. shapes: those of the warm-up, by name. specs: of the model's inputs, as the recipe has them."""

    recipe: str
    model: str
    max_batch: int
    triton: Triton
    shapes: Mapping[str, Mapping[str, int]]
    specs: Sequence[TensorSpec]

    def to_json(self) -> dict[str, Any]:
        return {
            "recipe": self.recipe, "model": self.model, "max_batch": self.max_batch,
            "triton": self.triton.model_dump(mode="json"), "shapes": {n: dict(d) for n, d in self.shapes.items()},
            "specs": [spec.to_json() for spec in self.specs],
        }  # fmt: skip

    def swept(self) -> PackageSettings:
        """As `self`, for a server on which settings of the dynamic batcher are tried."""
        if self.triton.dynamic_batching is not None:
            return self
        return replace(self, triton=self.triton.model_copy(update={"dynamic_batching": DynamicBatching(measured=True)}))

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> PackageSettings:
        """Read what `to_json` wrote."""
        specs = tuple(spec_from_json(spec) for spec in value["specs"])
        return cls(**{**value, "triton": Triton.model_validate(value["triton"]), "specs": specs})


def package_settings(loaded: LoadedRecipe) -> PackageSettings:
    recipe = loaded.recipe
    return PackageSettings(
        loaded.name, registered_name(recipe.release.model, loaded.name), largest_batch(recipe), recipe.release.triton,
        named_shapes(recipe), input_specs(recipe),
    )  # fmt: skip


def named_shapes(recipe: Recipe) -> dict[str, dict[str, int]]:
    """Return the measured shapes; without any, the usual shape of every profile."""
    at = {name: dict(dims) for name, dims in recipe.performance.at.items()}
    return at or {name: {dim: triple[1] for dim, triple in ranges.items()} for name, ranges in recipe.shapes.items()}
