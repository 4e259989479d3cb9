"""The batch: the dimension that counts samples, where tensors have it, and the sizes that batches take. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from engineworks.tensors import TensorSpec


def batch_dim(specs: Sequence[TensorSpec]) -> str | int:
    """The name of the batch dimension, or its length if it is fixed.

    It is a dynamic dimension whose name begins with 'batch', on any axis; else the dynamic axis 0 of the first input
    that has one.
    """
    named = [d for spec in specs for d in spec.dynamic_dims if d.lower().startswith("batch")]
    if named:
        return min(named, key=len)  # 'batch' goes before 'batch_heads'
    for spec in specs:
        if spec.shape and isinstance(spec.shape[0], str):
            return spec.shape[0]
    return next((d for spec in specs for d in spec.shape[:1]), 1)


def batch_axes(specs: Sequence[TensorSpec]) -> dict[str, int | None]:
    """The batch axis of each tensor; None for one without (its sample is fed as it is).

    A fixed batch above 1 that is not axis 0 of every input cannot be distinguished from other lengths. Then one sample
    is the whole input of a run.
    """
    dim = batch_dim(specs)
    if isinstance(dim, int):
        stacked = dim == 1 or all(s.shape[:1] == (dim,) for s in specs)
        return {s.name: 0 if stacked and s.shape[:1] == (dim,) else None for s in specs}
    return {s.name: s.shape.index(dim) if dim in s.shape else None for s in specs}


def output_axes(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> dict[str, int | None]:
    """The batch axis of each output: by its name, else axis 0 if the model's batch is there."""
    dim = batch_dim(inputs)
    axes = batch_axes(inputs)
    if all(axis is None for axis in axes.values()):
        return {o.name: None for o in outputs}
    first = 0 if any(a == 0 for a in axes.values()) else None
    return {o.name: o.shape.index(dim) if dim in o.shape else (first if o.shape else None) for o in outputs}


def fixed_batch(specs: Sequence[TensorSpec]) -> int | None:
    """The only batch size that the model takes, None if it takes several."""
    if any(axis is None for axis in batch_axes(specs).values()):
        return 1
    dim = batch_dim(specs)
    return dim if isinstance(dim, int) else None


def samples_per_run(specs: Sequence[TensorSpec], dims: Mapping[str, int]) -> int:
    """How many samples one run takes if the dynamic dimensions have these lengths."""
    dim = batch_dim(specs)
    return dims.get(dim, 1) if isinstance(dim, str) else fixed_batch(specs) or 1


def batch_sizes(count: int, sizes: Sequence[int], turn: int = 0) -> Iterator[int]:
    """Sizes of the batches of `count` samples, cycling through `sizes` from the `turn`-th on.

    If possible no batch is below the minimum of `sizes`, because the engine may refuse it. The one before the last
    shrinks.
    """
    least, most = max(1, min(sizes)), max(sizes)
    while count:
        size = min(count, max(1, sizes[turn % len(sizes)]))
        rest = count - size
        if 0 < rest < least:
            size = count if count <= most else max(least, size - (least - rest))
        yield size
        count, turn = count - size, turn + 1
