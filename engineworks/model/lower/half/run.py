"""Runs models derived from one another in ONNX Runtime on the CPU, with their weights in a folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from engineworks.errors import LoweringError
from engineworks.host.cpu import limit_threads
from engineworks.host.lazy import onnx, ort
from engineworks.model.lower.half.graph import complete_model
from engineworks.model.ort import exact_options, ort_errors_as, ort_level
from engineworks.model.tensor_storage import append_values, detach, tensor_bytes

Arrays = Mapping[str, NDArray[Any]]

_STORED_FROM_BYTES = 4096
_ALIGNMENT = 4096  # a page, so that ONNX Runtime can map the weight instead of reading it


class Bench:
    """A folder of weight files, and sessions of models that refer to them: gigabytes are written once and mapped."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files = 0
        self._stored: dict[int, tuple[onnx.TensorProto, onnx.TensorProto]] = {}

    def store(self, weights: Mapping[str, onnx.TensorProto]) -> dict[str, onnx.TensorProto]:
        """Write the weights to a file; returns tensors that refer to it (small ones hold their values).

        A tensor object that was stored before is not written again.
        """
        path = self.folder / f"{self._files}.weights"
        self._files += 1
        stored = {}
        with path.open("wb") as file:
            for name, tensor in weights.items():
                known = self._stored.get(id(tensor))
                stored[name] = known[1] if known else self._write(file, tensor, path.name)
                self._stored[id(tensor)] = (tensor, stored[name])
        return stored

    def _write(self, file: IO[bytes], tensor: onnx.TensorProto, location: str) -> onnx.TensorProto:
        if tensor_bytes(tensor) < _STORED_FROM_BYTES:
            return tensor
        file.seek(-file.tell() % _ALIGNMENT, 1)
        start = file.tell()
        if not append_values(tensor, file):
            return tensor
        stored = onnx.TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
        detach(stored, Path(location), start)
        return stored

    @contextmanager
    def borrow(self, weights: Mapping[str, onnx.TensorProto]) -> Iterator[dict[str, onnx.TensorProto]]:
        """Store weights temporarily: the end of the context deletes what this call wrote."""
        before, path = dict(self._stored), self.folder / f"{self._files}.weights"
        try:
            yield self.store(weights)
        finally:
            self._stored = before
            path.unlink()

    def open(
        self, shell: onnx.ModelProto, stored: Mapping[str, onnx.TensorProto], *, optimize: str = "none"
    ) -> ort.InferenceSession:
        """Open a session that frees each tensor after its last use.

        It runs the graph as written, or optimized at the level `optimize` (a key of `ort.LEVELS`). The order of
        execution is the order of the nodes. ONNX Runtime's default order would put all reductions that watch a tensor
        at the end, and keep every activation alive until then (2.5 GB in place of 0.2 GB for sixty tensors of 40 MB).
        Raises `LoweringError` with ONNX Runtime's message.
        """
        options = exact_options()
        options.graph_optimization_level = ort_level(optimize)
        options.execution_order = ort.ExecutionOrder.PRIORITY_BASED
        options.enable_mem_pattern = False
        options.enable_cpu_mem_arena = False
        options.log_severity_level = 3
        limit_threads(options)
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(self.folder))
        content = complete_model(shell, stored).SerializeToString(deterministic=True)
        with ort_errors_as(LoweringError, "ONNX Runtime does not load the model"):
            return ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def run(session: ort.InferenceSession, feeds: Arrays, outputs: Sequence[str]) -> list[NDArray[Any]]:
    """Return the named outputs, with the model's shapes and dtypes; a sequence of tensors becomes one flat array.

    feeds: arrays by input name. Raises `LoweringError` if the run fails.
    """
    with ort_errors_as(LoweringError, "ONNX Runtime does not run the model on a sample"):
        values = session.run(list(outputs), dict(feeds))
    return [_array(name, value) for name, value in zip(outputs, values, strict=True)]


def _array(name: str, value: object) -> NDArray[Any]:
    """Return a tensor as it is; join the tensors of a sequence into one flat array."""
    if isinstance(value, np.ndarray):
        return value
    if isinstance(value, list) and all(isinstance(item, np.ndarray) for item in value):
        return np.concatenate([item.ravel() for item in value]) if value else np.zeros(0, dtype=np.float32)
    raise LoweringError(
        f"output '{name}' is neither a tensor nor a sequence of tensors", hint="leave it out of the model"
    )
