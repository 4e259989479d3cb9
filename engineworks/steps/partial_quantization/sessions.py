"""Models from memory, whole or cut, as ONNX Runtime sessions on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from numpy.typing import NDArray

from engineworks.engines.backends.onnxruntime import session_options
from engineworks.errors import RunError
from engineworks.host.lazy import onnx, ort
from engineworks.model.onnx_files import EXTERNAL_ABOVE_BYTES, MODEL_FILE, save_model, weight_bytes
from engineworks.model.ort import lacks_exact_kernel, ort_errors, plain

T = TypeVar("T")
Tensors = dict[str, NDArray[Any]]


class CutSession:
    """Runs a model or a piece of one, whose inputs have types and no shapes.

    `scratch`: a folder for what no message can hold. integer_kernels: fuse Q/DQ into integer kernels, as the engine of
    a CPU target does; else, and where this processor has no exact kernel, compute the graph node by node, in fp8 too.
    Raises `RunError` if ONNX Runtime does not accept the model.
    """

    def __init__(self, model: onnx.ModelProto, scratch: Path, *, integer_kernels: bool = True) -> None:
        large = weight_bytes(model) > EXTERNAL_ABOVE_BYTES
        if large:
            save_model(model, scratch / MODEL_FILE)
        self._source = str(scratch / MODEL_FILE) if large else model.SerializeToString()
        self._integer_kernels = integer_kernels
        self._exactly("cannot load the model", self._open)
        self._inputs = [value.name for value in self._session.get_inputs()]
        self._outputs = [value.name for value in self._session.get_outputs()]

    def run(self, tensors: Mapping[str, NDArray[Any]]) -> Tensors:
        """Return all outputs by name, with the model's shapes and dtypes; tensors that are no inputs are ignored.
        Raises `RunError`."""
        feeds = {name: tensors[name] for name in self._inputs}
        outputs = self._exactly("failed", lambda: self._session.run(self._outputs, feeds))
        return dict(zip(self._outputs, outputs, strict=True))

    def _open(self) -> None:
        options = session_options({})
        if not self._integer_kernels:
            # Disabling fusions of Q/DQ is not enough: in fp8, ONNX Runtime 1.31 also removes the Relu before a Q.
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        self._session = ort.InferenceSession(self._source, options, providers=["CPUExecutionProvider"])

    def _exactly(self, what: str, action: Callable[[], T]) -> T:
        """Return the action's result; as the engine's build, without integer kernels where none is exact here."""
        try:
            return action()
        except ort_errors() as error:
            if not (self._integer_kernels and lacks_exact_kernel(str(error))):
                raise RunError(f"ONNX Runtime {what}: {plain(error)}", log=str(error)) from None
        self._integer_kernels = False
        self._exactly("cannot load the model", self._open)
        return self._exactly(what, action)
