"""Loads and drops one engine many times in one way; prints its readings as JSON. `serving.py --part leak` runs it.

    python benchmarks/leak_ways.py WAY FOLDER TARGET TIMES

FOLDER: an engine with its passport, as MLflow keeps it, and beside it the folder `pyfunc`, an MLflow model of it.
TARGET: the engine's target as JSON. A reading is {"rss_kib", "gpu_kib"} after a garbage collection.
"""

from __future__ import annotations

import ctypes
import gc
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from engineworks.engines.backends.base import Serving
from engineworks.engines.engine_session import load_engine
from engineworks.host.nvml import used_mib

RTX_WAYS = ("bare", "one runtime", "bare run")
"""By TensorRT-RTX alone: a runtime for each load, one for all, and one for all with a run of each engine."""

WAYS = (
    *("load", "load none", "load run", "load run none", "load run kernels"),
    *("mlflow", "mlflow dropped", "pyfunc", "pyfunc closed", "pyfunc trimmed"),
)
"""By Engineworks' loader ("none": general kernels only, "kernels": from a runtime cache), by the loader that MLflow
calls, and by MLflow."""

Once = Callable[[], None]


def by_tensorrt_rtx(folder: Path, *, one_runtime: bool, runs: bool) -> Once:
    import tensorrt_rtx as trt

    from engineworks.engines.backends._cuda import call

    data = (folder / "engine").read_bytes()
    logger = trt.Logger(trt.Logger.ERROR)
    shared = trt.Runtime(logger) if one_runtime else None

    def once() -> None:
        engine = (shared or trt.Runtime(logger)).deserialize_cuda_engine(data)
        context = engine.create_execution_context()
        if not runs:
            return
        stream, buffers = call("cudaStreamCreate"), []
        for name in map(engine.get_tensor_name, range(engine.num_io_tensors)):
            if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT:
                context.set_input_shape(name, engine.get_tensor_profile_shape(name, 0)[0])
            buffers.append(call("cudaMalloc", 16 << 20))
            context.set_tensor_address(name, int(buffers[-1]))
        assert context.execute_async_v3(int(stream))
        call("cudaStreamSynchronize", stream)
        for buffer in buffers:
            call("cudaFree", buffer)
        call("cudaStreamDestroy", stream)

    return once


def by_loader(folder: Path, target: Mapping[str, Any], *, general: bool, runs: bool, kernels: Path | None) -> Once:
    import numpy as np

    def once() -> None:
        session = load_engine(folder, target, serving=Serving(kernels="none" if general else "lazy"), cache=kernels)
        if runs:
            shapes = {s.name: [d if isinstance(d, int) else 1 for d in s.shape] for s in session.inputs}
            session.run({s.name: np.zeros(shapes[s.name], s.dtype) for s in session.inputs})
        session.close()

    return once


def by_mlflow_loader(folder: Path, *, close: bool) -> Once:
    from engineworks.tracking.engine_model import _load_pyfunc

    def once() -> None:
        model: Any = _load_pyfunc(str(folder))
        if close:
            model.close()

    return once


def by_mlflow(folder: Path, *, close: bool, trim: bool) -> Once:
    import mlflow.pyfunc

    def once() -> None:
        model: Any = mlflow.pyfunc.load_model(str(folder.parent / "pyfunc"))
        if close:
            model._model_impl.close()
        del model
        if trim:
            gc.collect()
            ctypes.CDLL(None).malloc_trim(0)

    return once


def chosen(way: str, folder: Path, target: Mapping[str, Any]) -> Once:
    if way in RTX_WAYS:
        return by_tensorrt_rtx(folder, one_runtime=way != "bare", runs=way == "bare run")
    if way.startswith("load"):
        kernels = folder.parent / "kernels" if way.endswith("kernels") else None
        return by_loader(folder, target, general=way.endswith("none"), runs="run" in way, kernels=kernels)
    if way.startswith("mlflow"):
        return by_mlflow_loader(folder, close=way == "mlflow")
    return by_mlflow(folder, close=way.endswith("closed"), trim=way.endswith("trimmed"))


def reading() -> dict[str, float]:
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {"rss_kib": float(status["RssAnon"].split()[0]), "gpu_kib": 1024 * (used_mib() or 0.0)}


def main() -> None:
    way, folder, target, times = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3]), int(sys.argv[4])
    once = chosen(way, folder, target)
    readings = []
    for _ in range(times):
        once()
        gc.collect()
        readings.append(reading())
    print(json.dumps(readings))


if __name__ == "__main__":
    main()
