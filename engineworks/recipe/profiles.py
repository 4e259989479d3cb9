"""Named dimensions → optimization profiles and concrete shapes. Pure; checked in `recipe.checks`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from engineworks.recipe.batch import batch_by_use, batch_dim, fixed_batch
from engineworks.recipe.recipe import Recipe
from engineworks.tensors import InputRange, Profile, TensorSpec

STATIC_PROFILE = "static"
"""Name of the one profile of a model whose shapes are all fixed."""


def input_specs(recipe: Recipe) -> tuple[TensorSpec, ...]:
    """The model's inputs, with the batch dimension if neither its name nor its place tells."""
    specs = tuple(TensorSpec(name, i.dtype, i.shape) for name, i in recipe.inputs.items())
    smallest: dict[str, int] = {}
    for triples in recipe.shapes.values():
        for dim, (low, _, _) in triples.items():
            smallest[dim] = min(low, smallest.get(dim, low))
    declared = recipe.batch if any(recipe.batch in spec.shape for spec in specs) else None
    batch = declared or batch_by_use(specs, recipe.outputs.values(), smallest)
    return tuple(replace(spec, batch=batch) for spec in specs) if batch else specs


def evaluation_batches(recipe: Recipe) -> list[int]:
    """The batch sizes that evaluation cycles through: minimum, optimum and maximum of every profile, ascending.

    An engine may be right at batch 1 and wrong at others.
    """
    specs = input_specs(recipe)
    fixed, dim = fixed_batch(specs), batch_dim(specs)
    if fixed is not None or not isinstance(dim, str):
        return [fixed or 1]
    sizes = {n for triples in recipe.shapes.values() for n in triples.get(dim, ())}
    return sorted(n for n in sizes if n > 0) or [1]


def dynamic_dims(recipe: Recipe) -> tuple[str, ...]:
    """Names of the inputs' dynamic dimensions, in order of appearance."""
    return tuple(dict.fromkeys(d for spec in input_specs(recipe) for d in spec.dynamic_dims))


def profiles(recipe: Recipe) -> tuple[Profile, ...]:
    """One profile per entry of `shapes`; one with fixed shapes if the model has no dynamic dimension."""
    specs = input_specs(recipe)
    ranges = recipe.shapes or {STATIC_PROFILE: {}}
    return tuple(
        Profile(name, {s.name: InputRange(*(_shape(s, dims, i) for i in range(3))) for s in specs})
        for name, dims in ranges.items()
    )


def concrete_shapes(recipe: Recipe, dims: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
    """The shape of every input with `dims` filled in."""
    return {s.name: s.concrete(dims) for s in input_specs(recipe)}


def admitting_profile(recipe: Recipe, at: str, dims: Mapping[str, int]) -> Profile | None:
    """The profile that serves the named shape: the one of the same name if it admits it, else the first that does."""
    shapes = concrete_shapes(recipe, dims)
    fitting = [p for p in profiles(recipe) if p.admits(shapes)]
    return next((p for p in fitting if p.name == at), fitting[0] if fitting else None)


def _shape(spec: TensorSpec, dims: Mapping[str, tuple[int, ...]], which: int) -> tuple[int, ...]:
    return spec.concrete({name: triple[which] for name, triple in dims.items()})
