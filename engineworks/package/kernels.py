"""The kernels that TensorRT-RTX compiles at the first run of a shape, as a part of the package.

They are compiled where a package is written on a host with the engine's GPU: every warm-up runs once, and the runtime
cache goes into the package. On the same GPU type, driver and version the first start takes them; anywhere else
TensorRT-RTX refuses the cache and compiles as usual (its API reference, `IRuntimeCache`).
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from engineworks.engines.backends import backend_facts
from engineworks.engines.backends.base import Serving
from engineworks.engines.engine_session import load_engine
from engineworks.engines.passport import Passport
from engineworks.errors import EngineworksError, RunError
from engineworks.host.child import ChildPool
from engineworks.host.file_digests import digest_file
from engineworks.host.lazy import np
from engineworks.package.triton import TritonModel, WarmUp
from engineworks.package.triton_engines import KERNELS
from engineworks.package.warmup import FOLDER as WARM_UPS
from engineworks.typed_json import plain

JOB = "engineworks.package.kernels:compile_in_child"

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
            "runs": [_tensors(model, warm_up, folder / WARM_UPS) for warm_up in model.warm_ups],
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
