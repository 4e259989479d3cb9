"""Rules across `release`, `waivers` and the rest of a recipe. No files are read."""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatchcase

from engineworks.recipe.auto import named_precisions
from engineworks.recipe.batch import batch_dim
from engineworks.recipe.decoder import target_names
from engineworks.recipe.findings import Finding, at_key, at_value
from engineworks.recipe.profiles import input_specs
from engineworks.recipe.recipe import Recipe


def batching_fits(recipe: Recipe) -> Iterator[Finding]:
    """Check that Triton can join requests along axis 0 of every tensor, up to the largest batch of the profiles."""
    batching = recipe.release.triton.dynamic_batching
    if batching is None:
        return
    path = ("release", "triton", "dynamic_batching")
    largest = largest_batch(recipe)
    if largest == 0:
        message = "dynamic batching needs a batch dimension that is axis 0 of every input and output"
        yield at_key(path, message, "take dynamic_batching out")
        return
    if batching.measured and recipe.performance.serving.load is None:
        message = "measured dynamic batching needs a load, whose p99_ms is the limit"
        yield at_key(path, message, "add e.g. performance.serving.load: {find_qps: true, p99_ms: 15}")
    if batching.measured and (batching.preferred or batching.max_delay_us):
        yield at_key(path, "dynamic batching is both given and measured", "leave measured alone")
    for index, size in enumerate(batching.preferred):
        if size > largest:
            message = f"preferred batch {size} is larger than every profile allows"
            yield at_value((*path, "preferred", index), message, f"at most {largest}")


def load_is_given(recipe: Recipe) -> Iterator[Finding]:
    """Check that the served load is either a rate or a search for one."""
    load, path = recipe.performance.serving.load, ("performance", "serving", "load")
    if load is not None and (load.qps is None) == (not load.find_qps):
        what = "both qps and find_qps" if load.qps is not None else "neither qps nor find_qps"
        yield at_key(path, f"the load names {what}", "give one: qps: 200, or find_qps: true")


def is_served(recipe: Recipe) -> bool:
    """Whether builds of the recipe serve their packages."""
    return recipe.release.serve is not None or recipe.performance.serving.load is not None


def largest_batch(recipe: Recipe) -> int:
    """The largest batch that Triton may form; 0 unless the batch is a dynamic axis 0 everywhere."""
    dim = batch_dim(input_specs(recipe))
    shapes = [i.shape for i in recipe.inputs.values()] + list(recipe.outputs.values())
    if not isinstance(dim, str) or any(shape[:1] != (dim,) for shape in shapes):
        return 0
    return max((ranges[dim][2] for ranges in recipe.shapes.values() if dim in ranges), default=0)


def waivers_name_something(recipe: Recipe) -> Iterator[Finding]:
    """Check that every waiver names a check of an engine of this recipe."""
    engines = [f"{precision}/{target}" for precision in named_precisions(recipe) for target in target_names(recipe)]
    for index, waiver in enumerate(recipe.waivers):
        path = ("waivers", index)
        if not waiver.check.strip("*?"):
            where = (*path, "check")
            yield at_value(where, f"'{waiver.check}' would waive every check", "name the check, e.g. cosine[logits]")
        if not any(fnmatchcase(engine, waiver.engine) for engine in engines):
            message = f"waiver for '{waiver.engine}', which is no engine of this recipe"
            where = (*path, "engine")
            yield at_value(where, message, f"a glob over precision/target, e.g. {engines[0] if engines else '*/*'}")


def aliases_differ(recipe: Recipe) -> Iterator[Finding]:
    """Check aliases: MLflow's have no dots, so targets that differ only in dots would share a champion."""
    names: dict[str, str] = {}
    for index, target in enumerate(recipe.targets):
        other = names.setdefault(target.replace(".", "_"), target)
        if other != target:
            path = ("targets", index)
            yield at_value(path, f"'{target}' and '{other}' would have the same alias in MLflow", "rename one")
