"""How a package starts warm: samples, real rows of the evaluation data in one raw file per input and named shape, and
the kernels that TensorRT-RTX compiles at the first run of a shape.

Kernels are compiled where a package is written on a host with the engine's GPU: every warm-up runs once, and the
runtime cache goes into the package. On the same GPU type, driver and version the first start takes them; anywhere else
TensorRT-RTX refuses the cache and compiles as usual (its API reference, `IRuntimeCache`).
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from engineworks.engines.backends import backend_facts
from engineworks.engines.backends._feeds import narrowed_feeds
from engineworks.engines.backends.base import Serving
from engineworks.engines.engine_session import load_engine
from engineworks.engines.passport import Passport
from engineworks.errors import EngineworksError, RunError
from engineworks.host.child import ChildPool
from engineworks.host.file_digests import digest_file
from engineworks.host.lazy import np
from engineworks.package.python_model import padded_sizes
from engineworks.package.triton import TritonModel, WarmUp
from engineworks.package.triton_engines import KERNELS
from engineworks.recipe.batch import batch_dim
from engineworks.recipe.package_settings import PackageSettings
from engineworks.recipe.samples import SampleFile, feeds_at
from engineworks.tensors import Profile, TensorSpec
from engineworks.typed_json import plain

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


JOB = "engineworks.package.warmup:compile_in_child"

TIME_LIMIT_S = 600.0
"""A shape takes under a second on an H200."""


def package_kernels(
    engine: Path, passport: Passport, model: TritonModel, folder: Path, echo: Callable[[str], object]
) -> dict[str, str]:
    """Compile the engine's kernels into the model's directory; return sha256 by path there, {} where this host cannot
    run the engine or its backend compiles at build time. Where compiling fails, `echo` gets the reason, and the server
    compiles.

    engine: the folder of its files. folder: the model's directory, with the warm-ups' files.
    """
    target = passport.target
    if not model.warm_ups or backend_facts(target.backend).why_not_run(target.compute_capability) is not None:
        return {}
    with TemporaryDirectory(prefix="engineworks-kernels-") as out, ChildPool() as pool:
        payload = {
            "engine": str(engine), "target": plain(target), "serving": passport.serving.to_json(), "out": out,
            "runs": [_tensors(model, warm_up, folder / FOLDER) for warm_up in model.warm_ups],
        }  # fmt: skip
        what = f"compiling the kernels of {passport.id}"
        try:
            pool.run(JOB, payload, fresh=True, time_limit_s=TIME_LIMIT_S, what=what, error=RunError)
        except EngineworksError as error:
            echo(f"{passport.id}: comes without kernels, so a server compiles them: {error.message}")
            return {}
        place = folder / KERNELS / target.name
        shutil.copytree(out, place)
    return {file.relative_to(folder).as_posix(): digest_file(file) for file in place.iterdir()}


def _tensors(model: TritonModel, warm_up: WarmUp, samples: Path) -> list[dict[str, Any]]:
    """Describe a warm-up's feeds: one sample of each input, and how many of them make a batch (0: it is whole)."""
    batch, dtypes = warm_up.batch if model.max_batch else 0, {spec.name: spec.dtype for spec in model.inputs}
    return [
        {"name": name, "file": str(samples / file), "dtype": dtypes[name], "shape": list(warm_up.shapes[name]),
         "batch": batch} for name, file in warm_up.files.items()
    ]  # fmt: skip


def compile_in_child(payload: Mapping[str, Any]) -> dict[str, Any]:
    """Run the engine once at every shape, and keep what it compiled: entry point of a child process.

    Specialized kernels are made before a run, not beside it: those that are not finished when a session ends are lost,
    and with a cache no later session asks for them (docs/choosing-a-precision.md, "A runtime cache").
    """
    from engineworks.engines.backends._trt_tensors import numpy_dtype

    serving = Serving.from_json(payload["serving"])
    whole = replace(serving, kernels="eager") if serving.kernels == "lazy" else serving
    session = load_engine(Path(payload["engine"]), payload["target"], serving=whole, cache=Path(payload["out"]))
    try:
        for tensors in payload["runs"]:
            feeds = {}
            for tensor in tensors:
                sample = np.fromfile(tensor["file"], numpy_dtype(tensor["dtype"])).reshape(tensor["shape"])
                batch = (tensor["batch"], *sample.shape) if tensor["batch"] else sample.shape
                feeds[tensor["name"]] = np.ascontiguousarray(np.broadcast_to(sample, batch))
            session.run(feeds)
    finally:
        session.close()
    return {}
