"""A model for Triton's Python backend that runs an engine, for servers that have no backend for it.

Follows triton-inference-server/python_backend, README.md ("Usage"): `initialize` gets strings by name. `execute` gets a
list of requests, which the dynamic batcher has chosen to be one batch but not joined.

Tensors pass by DLPack: with NumPy 2, `as_numpy` and `Tensor` of Triton up to 24.10 read and write wrong memory without
an error (triton-inference-server/python_backend#384).
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from engineworks.errors import EngineworksError
from engineworks.package.triton_engines import open_packaged

CACHE_PARAMETER = "runtime_cache"
"""Parameter of the model's configuration: the folder in whose subfolder of the model's name an engine keeps its kernels
for the next start. Without it, those of the package are taken, and nothing is kept."""

NO_CACHE = "none"
"""Value of the parameter with which an engine compiles everything anew."""


VISIBLE = "CUDA_VISIBLE_DEVICES"
"""Each instance is a process of its own. CUDA reads this when it starts, which is after `initialize` has begun."""

CONSUMED = b"used_dltensor"
"""DLPack's name of a capsule that has a new owner. Triton 24.10 writes another one, which NumPy reports as an error."""

_set_name, _object = ctypes.pythonapi.PyCapsule_SetName, ctypes.py_object


class TritonPythonModel:
    """Loads the engine after checking its passport; runs once per group of requests of equal shapes.

    On a GPU a batch is padded to the next of `padded_sizes`: TensorRT-RTX 1.6.1 takes 0.2 to 0.3 s for the first run of
    a shape (H200), whichever way it makes kernels. With dynamic batching all sizes ran before the model was ready.
    """

    def initialize(self, args: Mapping[str, str]) -> None:
        """Raises `TrustError` or `RunError`, which Triton logs as the reason why the model is not ready."""
        self._triton = importlib.import_module("triton_python_backend_utils")  # exists only in Triton
        config = json.loads(args["model_config"])
        most = int(config["max_batch_size"])
        self._batching = most > 0
        on_gpu = args.get("model_instance_kind", "").endswith("GPU")
        self._sizes = padded_sizes(most) if on_gpu and self._batching else ()
        if on_gpu:
            os.environ[VISIBLE] = visible_device(int(args["model_instance_device_id"]))
        self._outputs = [output["name"] for output in config["output"]]
        name = args.get("model_name", "")
        self._scratch = TemporaryDirectory(prefix="engineworks-kernels-")
        kept = config.get("parameters", {}).get(CACHE_PARAMETER, {}).get("string_value")
        cache = Path(kept, name) if kept else Path(self._scratch.name)
        usable = on_gpu and kept != NO_CACHE
        self._session = open_packaged(Path(args["model_repository"]), name, cache=cache if usable else None)
        self._ranks = {spec.name: len(spec.shape) for spec in self._session.inputs}

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Return one response per request. Only requests of equal shapes share a run, and its failure."""
        responses: list[Any] = [None] * len(requests)
        feeds = [self._feeds(request) for request in requests]
        alone = not self._batching or len(feeds) == 1
        for group in [[index] for index in range(len(feeds))] if alone else _groups(feeds):
            for index, response in zip(group, self._respond([feeds[i] for i in group]), strict=True):
                responses[index] = response
        return responses

    def finalize(self) -> None:
        self._session.close()
        self._scratch.cleanup()

    def _feeds(self, request: Any) -> dict[str, Any]:
        feeds = {}
        for name, rank in self._ranks.items():
            array = np.from_dlpack(self._triton.get_input_tensor_by_name(request, name))
            # [1] replaces no dimension
            feeds[name] = array if array.ndim == rank else array.reshape(array.shape[:rank])
        return feeds

    def _respond(self, feeds: Sequence[Mapping[str, Any]], *, padded: bool = True) -> list[Any]:
        counts = [next(iter(f.values())).shape[0] for f in feeds] if self._batching else []
        filler = self._filler(sum(counts)) if padded else 0
        try:
            outputs = self._session.run(_joined(feeds, filler) if filler or len(feeds) > 1 else feeds[0])
        except EngineworksError as error:
            if filler:  # no profile admits the padded batch, or memory does not suffice
                return self._respond(feeds, padded=False)
            failed = self._triton.TritonError(str(error))
            return [self._triton.InferenceResponse(output_tensors=[], error=failed) for _ in feeds]
        if len(feeds) == 1 and not filler:
            return [self._response(outputs)]
        parts = {name: np.split(outputs[name], np.cumsum(counts)) for name in self._outputs}
        return [self._response({name: parts[name][i] for name in self._outputs}) for i in range(len(feeds))]

    def _filler(self, rows: int) -> int:
        """How many rows pad a batch."""
        return next((size - rows for size in self._sizes if size >= rows > 0), 0)

    def _response(self, outputs: Mapping[str, Any]) -> Any:
        return self._triton.InferenceResponse(output_tensors=[self._tensor(n, outputs[n]) for n in self._outputs])

    def _tensor(self, name: str, array: Any) -> Any:
        whole = array if array.flags.carray else np.require(array, requirements=["C", "W"])  # DLPack takes no other
        capsule = whole.__dlpack__()
        tensor = self._triton.Tensor.from_dlpack(name, capsule)
        _set_name(_object(capsule), CONSUMED)
        return tensor


def visible_device(index: int) -> str:
    """Return the name of the GPU that Triton calls by this index: its place among those that are visible."""
    names = os.environ.get(VISIBLE, "").split(",")
    return names[index].strip() if index < len(names) and names[index].strip() else str(index)


def padded_sizes(largest: int) -> tuple[int, ...]:
    """The sizes to which a GPU's batches are padded: powers of two below the largest, and it."""
    return (*(1 << power for power in range(max(0, largest - 1).bit_length())), largest)


def _joined(feeds: Sequence[Mapping[str, Any]], filler: int) -> dict[str, Any]:
    """Return one batch of all rows, and the last one again `filler` times."""
    last = feeds[-1]
    return {n: np.concatenate([*(f[n] for f in feeds), *[last[n][-1:]] * filler]) for n in last}


def _groups(feeds: Sequence[Mapping[str, Any]]) -> list[list[int]]:
    """Return the indices of requests that can be joined: their shapes are equal without the batch."""
    groups: dict[tuple[tuple[int, ...], ...], list[int]] = {}
    for index, arrays in enumerate(feeds):
        groups.setdefault(tuple(a.shape[1:] for a in arrays.values()), []).append(index)
    return list(groups.values())
