"""Warm-up samples of a Triton package: real rows of the evaluation data, one raw file per input and named shape."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

from engineworks.engines.backends._feeds import narrowed_feeds
from engineworks.package.python_model import padded_sizes
from engineworks.package.triton import WarmUp
from engineworks.recipe.batch import batch_dim
from engineworks.recipe.package_settings import PackageSettings
from engineworks.recipe.samples import SampleFile, feeds_at
from engineworks.tensors import Profile, TensorSpec

FOLDER = "warmup"
"""The folder in the model's directory where Triton looks for `input_data_file`."""


def write_warm_ups(
    settings: PackageSettings, samples: SampleFile, folder: Path, inputs: Sequence[TensorSpec], *, on_gpu: bool,
    padded_within: Sequence[Profile] = (),
) -> list[WarmUp]:  # fmt: skip
    """Write the samples into the model's directory, in the dtypes of the engine's inputs.

    on_gpu: at every named shape, for which kernels are compiled or graphs captured. A CPU gets the smallest alone: its
    first run of a shape takes as long as the next, and a large batch would only keep the model from being ready.
    padded_within: profiles of an engine whose model pads batches to `padded_sizes`; these are run once each too, at the
    shapes of the named ones, where a profile admits them.

    With batching, a file is one sample of shape [1, …] that Triton repeats to make a batch (`batch_size`); otherwise it
    is the whole feed. Values are little-endian and row-major, as in NumPy's `tobytes`.
    """
    count, max_batch, specs = settings.triton.warmup, settings.max_batch, tuple(settings.specs)
    shapes = dict(settings.shapes)
    if shapes and not on_gpu:
        shapes = dict([min(shapes.items(), key=lambda named: math.prod(named[1].values()))])
    warm_ups = list[WarmUp]()
    for name, dims in shapes.items() if count else ():
        batch, sample_dims = _one_sample(specs, dims) if max_batch else (1, dims)
        feeds = narrowed_feeds(inputs, feeds_at(specs, samples, sample_dims))
        files = {}
        (folder / FOLDER).mkdir(exist_ok=True)
        for index, (tensor, array) in enumerate(feeds.items()):
            files[tensor] = f"{name}-{index}.raw"
            (folder / FOLDER / files[tensor]).write_bytes(array.tobytes())
        per_sample = {tensor: a.shape[1:] if max_batch else a.shape for tensor, a in feeds.items()}
        warm_ups.append(WarmUp(name, min(batch, max_batch) if max_batch else 1, count, per_sample, files))
    return [*warm_ups, *_padded(warm_ups, max_batch, padded_within)] if max_batch else warm_ups


def _padded(named: Sequence[WarmUp], max_batch: int, profiles: Sequence[Profile]) -> Iterator[WarmUp]:
    """Yield every size to which a batch is padded, at every shape of a sample, that is not among the named ones."""
    done = {(*warm_up.shapes.values(), warm_up.batch) for warm_up in named}
    for warm_up, size in product(named, padded_sizes(max_batch)):
        whole = {name: (size, *shape) for name, shape in warm_up.shapes.items()}
        admitted = any(profile.admits(whole) for profile in profiles)
        if admitted and (shape := (*warm_up.shapes.values(), size)) not in done:
            done.add(shape)
            yield replace(warm_up, name=f"{warm_up.name}-{size}", batch=size, count=1)


def _one_sample(specs: Sequence[TensorSpec], dims: Mapping[str, int]) -> tuple[int, dict[str, int]]:
    """Return the batch of a named shape, and the shape with a batch of one."""
    dim = batch_dim(specs)
    assert isinstance(dim, str)  # otherwise Triton does no batching
    return max(1, dims.get(dim, 1)), {**dims, dim: 1}
