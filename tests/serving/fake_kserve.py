"""A small server of KServe's protocol, version 2, by gRPC in this process: the client's other side."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
import numpy as np
from tritonclient.grpc import service_pb2 as messages
from tritonclient.grpc import service_pb2_grpc as services

Model = Callable[[Mapping[str, Any]], Mapping[str, Any]]
"""Feeds by name → outputs by name; float32 only. A ValueError is the server's refusal."""


class FakeServer(services.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """models: by name. backends: names that it has. loaded: names of models, in the order of their loads. extensions:
    of KServe's protocol. broken: by model, why it cannot be loaded."""

    def __init__(self, models: Mapping[str, Model], backends: tuple[str, ...] = ("python",)) -> None:
        self.models, self.backends, self.loaded = dict(models), backends, list[str]()
        self.extensions, self.broken = ["model_repository", "statistics"], dict[str, str]()

    def ServerMetadata(self, request: Any, context: Any) -> Any:
        return messages.ServerMetadataResponse(name="fake", version="2.0", extensions=self.extensions)

    def ModelReady(self, request: Any, context: Any) -> Any:
        return messages.ModelReadyResponse(ready=request.name in self.loaded)

    def RepositoryModelLoad(self, request: Any, context: Any) -> Any:
        if "config" in request.parameters:
            backend = json.loads(request.parameters["config"].string_param)["backend"]
            if backend not in self.backends:
                context.abort(grpc.StatusCode.INTERNAL, f"unable to find backend library for backend '{backend}'")
            context.abort(grpc.StatusCode.INTERNAL, "failed to load 'probe', Internal: ImportError: no model")
        if request.model_name not in self.models:
            context.abort(grpc.StatusCode.INTERNAL, f"failed to load '{request.model_name}', no version is available")
        if why := self.broken.get(request.model_name):
            context.abort(grpc.StatusCode.INTERNAL, why)
        self.loaded.append(request.model_name)
        return messages.RepositoryModelLoadResponse()

    def RepositoryModelUnload(self, request: Any, context: Any) -> Any:
        self.loaded.remove(request.model_name)
        return messages.RepositoryModelUnloadResponse()

    def RepositoryIndex(self, request: Any, context: Any) -> Any:
        index = [
            messages.RepositoryIndexResponse.ModelIndex(
                name=name, version="1", state="READY" if name in self.loaded else "UNAVAILABLE",
                reason="" if name in self.loaded else "unloaded",
            )
            for name in self.models
        ]  # fmt: skip
        return messages.RepositoryIndexResponse(models=index)

    def ModelInfer(self, request: Any, context: Any) -> Any:
        feeds = {
            tensor.name: np.frombuffer(raw, np.float32).reshape(tuple(tensor.shape))
            for tensor, raw in zip(request.inputs, request.raw_input_contents, strict=True)
        }
        try:
            outputs = self.models[request.model_name](feeds)
        except ValueError as error:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"[request id: <id_unknown>] {error}")
        answer = messages.ModelInferResponse(model_name=request.model_name, model_version="1")
        for name, array in outputs.items():
            answer.outputs.add(name=name, datatype="FP32", shape=array.shape)
            answer.raw_output_contents.append(array.astype(np.float32).tobytes())
        return answer


@contextmanager
def serve(fake: FakeServer) -> Iterator[str]:
    """Yield the server's address."""
    server = grpc.server(ThreadPoolExecutor(4))
    services.add_GRPCInferenceServiceServicer_to_server(fake, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(0).wait()
