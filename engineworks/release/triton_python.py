"""A model for Triton's Python backend that serves a TensorRT-RTX engine, because Triton has no such backend.

Follows triton-inference-server/python_backend, README.md ("Usage"): `initialize` gets strings by name. `execute` gets a
list of requests, which the dynamic batcher has chosen to be one batch but not joined.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from engineworks.errors import EngineworksError
from engineworks.package.triton_engines import open_packaged


class TritonPythonModel:
    """Loads the engine after checking its passport; runs once per batch."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Raises `TrustError` or `RunError`, which Triton logs as the reason why the model is not ready."""
        self._triton = importlib.import_module("triton_python_backend_utils")  # exists only in Triton
        config = json.loads(args["model_config"])
        self._batching = int(config["max_batch_size"]) > 0
        self._outputs = {output["name"]: len(output["dims"]) for output in config["output"]}
        self._session = open_packaged(Path(args["model_repository"]), args.get("model_name", ""))
        self._inputs = {spec.name: spec for spec in self._session.inputs}

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Return one response per request; requests of equal shapes run as one batch."""
        feeds = [self._feeds(request) for request in requests]
        if not self._batching or len({_shape(f) for f in feeds}) > 1:
            return [self._respond([f])[0] for f in feeds]
        return self._respond(feeds)

    def finalize(self) -> None:
        self._session.close()

    def _feeds(self, request: Any) -> dict[str, Any]:
        feeds = {}
        for name, spec in self._inputs.items():
            array = self._triton.get_input_tensor_by_name(request, name).as_numpy()
            feeds[name] = array.reshape(array.shape[: len(spec.shape)])  # drop a [1] that replaces no dimension
        return feeds

    def _respond(self, feeds: Sequence[Mapping[str, Any]]) -> list[Any]:
        import numpy as np

        rows = [next(iter(f.values())).shape[0] if self._batching else 0 for f in feeds]
        joined = {name: np.concatenate([f[name] for f in feeds]) for name in feeds[0]} if len(feeds) > 1 else feeds[0]
        try:
            outputs = self._session.run(joined)
        except EngineworksError as error:
            failed = self._triton.TritonError(str(error))
            return [self._triton.InferenceResponse(output_tensors=[], error=failed) for _ in feeds]
        ends = np.cumsum(rows)[:-1]
        parts = {name: np.split(a, ends) if self._batching else [a] for name, a in outputs.items()}
        tensor = self._triton.Tensor
        return [
            self._triton.InferenceResponse(output_tensors=[tensor(n, parts[n][i]) for n in self._outputs])
            for i in range(len(feeds))
        ]


def _shape(feeds: Mapping[str, Any]) -> tuple[tuple[int, ...], ...]:
    """Return the shapes without the batch: only requests with equal ones can be joined."""
    return tuple(a.shape[1:] for a in feeds.values())
