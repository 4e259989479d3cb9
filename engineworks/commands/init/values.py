"""Seeded values of the inputs' ranges: feeds for a trial run, and files of synthetic samples."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from engineworks.commands.init.draft import Range, Triples
from engineworks.errors import ModelError
from engineworks.host.lazy import Array
from engineworks.recipe.batch import batch_axes, batch_dim, fills, fixed_batch
from engineworks.tensors import TensorSpec

SAMPLES = 64
LARGEST_BYTES = 64 << 20
LEAST_SAMPLES = 4
LARGEST_ROW_BYTES = 64 << 20
"""At least 4 samples are written, in float64 while they are made."""


def values(random: np.random.Generator, dtype: str, shape: Sequence[int], within: Range | None) -> Array:
    """Return evenly spread values of the dtype and shape in the range, both ends included; bools are true."""
    if dtype == "bool" or within is None:
        return np.ones(tuple(shape), np.dtype(dtype))
    low, high = within
    if dtype.startswith("float"):
        return random.uniform(low, high, tuple(shape)).astype(dtype)
    return random.integers(int(low), int(high), tuple(shape), dtype=np.int64, endpoint=True).astype(dtype)


def feeds(specs: Sequence[TensorSpec], ranges: Mapping[str, Range], dims: Mapping[str, int]) -> dict[str, Array]:
    """Return one run's inputs at these lengths, with the specs' shapes and dtypes; deterministic."""
    random = np.random.default_rng(0)
    return {s.name: values(random, s.dtype, s.concrete(dims), ranges.get(s.name)) for s in specs}


def write_stand_in(path: Path, specs: Sequence[TensorSpec], ranges: Mapping[str, Range], shapes: Triples) -> int:
    """Write an .npz of samples as recipes need them: axis 0 counts samples, the batch dimension is left out.

    Returns how many: 64, fewer if they would be large, as many as fill batches of the profile.
    """
    random, axes, batch = np.random.default_rng(1), batch_axes(specs), batch_dim(specs)
    dims = {dim: triple[1] for dim, triple in shapes.items()}
    samples = {s.name: _sample_shape(s.concrete(dims), axes[s.name]) for s in specs}
    row_bytes = sum(math.prod(samples[s.name]) * np.dtype(s.dtype).itemsize for s in specs)
    if row_bytes > LARGEST_ROW_BYTES:
        raise ModelError(
            f"one sample of the model's inputs takes {row_bytes:,} bytes: no synthetic samples are written",
            hint="are the lengths of its inputs right?",
        )
    count = max(LEAST_SAMPLES, min(SAMPLES, LARGEST_BYTES // max(row_bytes, 1)))
    fixed = fixed_batch(specs)
    sizes = shapes[batch] if fixed is None and isinstance(batch, str) else [fixed or 1]
    count = next((n for n in range(count, 0, -1) if fills(n, sizes)), max(1, min(sizes)))
    arrays = {s.name: values(random, s.dtype, (count, *samples[s.name]), ranges.get(s.name)) for s in specs}
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return count


def _sample_shape(shape: tuple[int, ...], axis: int | None) -> tuple[int, ...]:
    return shape if axis is None else shape[:axis] + shape[axis + 1 :]
