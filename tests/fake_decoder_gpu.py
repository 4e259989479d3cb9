"""A decoder's engines on the GPU made of host memory: an engine file is the ONNX file at one shape, and ONNX Runtime is
what computes."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import onnxruntime as ort
from fake_gpu import FakeEngine, FakeRuntime, FakeTensor, FakeVendor

from engineworks.engines.backends import _cuda, _trt_load, _trt_log
from engineworks.engines.backends._trt import Vendor
from engineworks.engines.backends.base import BuildReport, BuildRequest
from engineworks.model.onnx_files import graph_inputs, graph_outputs, load_model

DTYPES = {"tensor(float)": "FLOAT", "tensor(float16)": "HALF", "tensor(int64)": "INT64"}


class OnnxVendor(FakeVendor):
    """tensorrt_rtx for engines that are ONNX files. changed: changes what an engine computes, by its batch and number
    of tokens; for planted faults."""

    def __init__(self, cuda: FakeRuntime, changed: Callable[[int, int, Any], Any] = lambda b, t, made: made) -> None:
        super().__init__(None)
        self.cuda, self.changed, self.engines = cuda, changed, list[FakeEngine]()

    def Runtime(self, logger: Any) -> Any:
        return SimpleNamespace(deserialize_cuda_engine=self._opened, get_engine_validity=lambda data: (0, 0))

    def _opened(self, data: Any) -> FakeEngine:
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 3
        session = ort.InferenceSession(bytes(data), options, providers=["CPUExecutionProvider"])
        inputs, outputs = (
            {value.name: FakeTensor(DTYPES[value.type], value.shape) for value in values}
            for values in (session.get_inputs(), session.get_outputs())
        )
        batch, tokens = inputs["input_ids"].shape

        def compute(given: Any) -> Any:
            made = dict(zip(outputs, session.run(None, dict(given)), strict=True))
            return self.changed(batch, tokens, made)

        self.engines.append(FakeEngine(inputs, outputs, compute, lambda given: {}, self.cuda))
        return self.engines[-1]


def use_fake_gpu(patch: Any, vendor: OnnxVendor) -> None:
    """patch: a MonkeyPatch. Every engine of TensorRT-RTX and TensorRT then runs on `vendor`."""
    patch.setattr(_cuda, "runtime", lambda: vendor.cuda)
    patch.setattr(_trt_log, "_loggers", {})
    patch.setattr(_trt_load, "first_gpu", lambda: None)  # the engine's header is not looked at
    patch.setattr(Vendor, "load", lambda self: vendor)


def build(request: BuildRequest, log: Callable[[str], None]) -> BuildReport:
    """What a backend's `build` does: the engine is the model."""
    model = load_model(request.model)
    (request.out / "engine").write_bytes(model.SerializeToString())
    log(f"{request.model.name} for {', '.join(request.compute_capabilities)}")
    return BuildReport("engine", graph_inputs(model), graph_outputs(model), 0.0, {"tensorrt-rtx": "1.7.1.116"}, {})
