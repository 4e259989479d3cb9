"""Packages for a server's own backends, on a real server.

No backend of Triton for ONNX Runtime or TensorRT can be installed here. A backend in Python stands in for ONNX
Runtime's: the server reads the package's configuration, finds the backend by its name and warms the model up; the
stand-in loads the file that the configuration names.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engineworks.engines.backends import onnxruntime
from engineworks.engines.passport import read_passport
from engineworks.engines.signing import Trust
from engineworks.host.triton import NO_SERVER, InstalledServer, find_server
from engineworks.package.package import PackagedEngine, write_package
from engineworks.serving.client import Client
from engineworks.serving.server import available_backends, started

pytestmark = [pytest.mark.triton, pytest.mark.timeout(240)]

BACKEND = """
import json
from pathlib import Path

import numpy as np
import onnxruntime
import triton_python_backend_utils as triton


class TritonPythonModel:
    def initialize(self, args):
        config = json.loads(args["model_config"])
        file = Path(args["model_repository"], args["model_version"], config["default_model_filename"])
        self.session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
        self.inputs = [one["name"] for one in config["input"]]
        self.outputs = [one["name"] for one in config["output"]]

    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        feeds = {name: np.from_dlpack(triton.get_input_tensor_by_name(request, name)) for name in self.inputs}
        arrays = self.session.run(self.outputs, feeds)
        tensors = [triton.Tensor.from_dlpack(n, a.__dlpack__()) for n, a in zip(self.outputs, arrays)]
        return triton.InferenceResponse(output_tensors=tensors)
"""


def test_a_server_with_onnxruntimes_backend_gets_the_engine_itself(built: Any, tmp_path: Path) -> None:
    installed = find_server(start=Path(__file__))
    if not isinstance(installed, InstalledServer):
        pytest.fail(NO_SERVER)
    backends = tmp_path / "backends"
    (backends / "onnxruntime").mkdir(parents=True)
    (backends / "onnxruntime" / "model.py").write_text(BACKEND)
    (backends / "python").symlink_to(installed.backends / "python")
    server = replace(installed, backends=backends)
    assert available_backends(server) == ("onnxruntime", "python")
    engine = built.engine("tiny/int8/cpu")
    packaged = PackagedEngine(engine.path.parent, read_passport(engine.passport, Trust()))
    models = tmp_path / "models"
    (model,) = write_package(built.plan.loaded, [packaged], models, available=available_backends(server))
    assert not (model / "1" / "model.py").exists()
    feeds = {"image": np.random.default_rng(0).normal(0, 1, (3, 1, 4, 4)).astype(np.float32)}
    with started(server, models) as process, Client(process.addresses.grpc, "grpc") as client:
        assert client.has_backend("onnxruntime")
        assert not client.has_backend("tensorrt")
        client.load(model.name)
        config = client.config(model.name)
        assert (config["backend"], config["default_model_filename"]) == ("onnxruntime", "model.onnx")
        assert config["dynamic_batching"]["preferred_batch_size"] == [8, 16]
        got = client.infer(model.name, feeds)["logits"]
    np.testing.assert_allclose(got, onnxruntime.load(engine.path, {}).run(feeds)["logits"], atol=1e-5)
