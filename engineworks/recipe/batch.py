"""The batch: the dimension that counts samples, where tensors have it, and the sizes that batches take. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from engineworks.tensors import Dim, TensorSpec

Shape = Sequence[Dim]


def batch_dim(specs: Sequence[TensorSpec]) -> str | int:
    """The name of the batch dimension, or its length if it is fixed.

    It is the declared one; else a dynamic dimension whose name begins with 'batch', on any axis; else the dynamic axis
    0 of the first input that has one.
    """
    declared = next((spec.batch for spec in specs if spec.batch), None)
    if declared:
        return declared
    named = [d for spec in specs for d in spec.dynamic_dims if d.lower().startswith("batch")]
    if named:
        return min(named, key=len)  # 'batch' goes before 'batch_heads'
    for spec in specs:
        if spec.shape and isinstance(spec.shape[0], str):
            return spec.shape[0]
    return next((d for spec in specs for d in spec.shape[:1]), 1)


def batch_by_use(specs: Sequence[TensorSpec], outputs: Iterable[Shape], smallest: Mapping[str, int]) -> str:
    """The dimension that inputs, outputs and profiles show to be the batch, though its place does not; '' if there is
    none.

    The batch is in every input and every output with dynamic dimensions, may be 1, and is axis 0 of every such output.
    A dimension with the first three traits that is axis 0 of no input replaces the usual one, of `batch_dim`, if that
    has two traits less, or is a fixed length. smallest: for every dynamic dimension, the smallest length of all
    profiles.
    """
    usual = batch_dim(specs)
    dynamic = [s.shape for s in specs if s.dynamic_dims]
    if usual == 1 or not dynamic or (isinstance(usual, str) and usual.lower().startswith("batch")):
        return ""
    made = [shape for shape in outputs if any(isinstance(d, str) for d in shape)]

    def traits(dim: int | str) -> int:
        everywhere = [all(dim in shape for shape in shapes) for shapes in (dynamic, made)]
        leads = bool(made) and all(shape[0] == dim for shape in made)
        return sum(everywhere) + (smallest.get(str(dim), 1) <= 1) + leads

    inner = [d for d in smallest if all(d in shape and shape[0] != d for shape in dynamic)]
    found = [d for d in inner if smallest[d] <= 1 and all(d in shape for shape in made)]
    unlikely = isinstance(usual, int) or (len(found) == 1 and traits(found[0]) >= traits(usual) + 2)
    return found[0] if len(found) == 1 and unlikely else ""


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

    Where the rest would not fill batches from the minimum to the maximum of `sizes`, another size is taken, so that no
    engine gets a batch that it may refuse. `fills` tells whether that is possible.
    """
    while count:
        wanted = min(count, max(1, sizes[turn % len(sizes)]))
        allowed = range(max(1, min(sizes)), min(count, max(sizes)) + 1)
        nearest = sorted(allowed, key=lambda n: (n > wanted, abs(n - wanted)))
        size = next((n for n in nearest if fills(count - n, sizes)), wanted)
        yield size
        count, turn = count - size, turn + 1


def fills(count: int, sizes: Sequence[int]) -> bool:
    """Whether so many samples can be cut into batches from the minimum to the maximum of `sizes`."""
    return -(-count // max(1, *sizes)) * max(1, min(sizes)) <= count
