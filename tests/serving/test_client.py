"""The client and the choice of backends, against a server in this process."""

from __future__ import annotations

from collections.abc import Mapping
from threading import Event
from typing import Any

import numpy as np
import pytest
from serving.fake_kserve import FakeServer, serve

from engineworks.errors import RunError
from engineworks.host.triton import RunningServer
from engineworks.package.package import CONTAINER
from engineworks.serving.client import Client
from engineworks.serving.server import available_backends


def double(feeds: Mapping[str, Any]) -> Mapping[str, Any]:
    if feeds["x"].ndim != 2:
        raise ValueError("unexpected shape for input 'x'. NOTE: more")
    return {"y": 2 * feeds["x"]}


def test_arrays_in_and_arrays_out_and_refusals_in_the_servers_words() -> None:
    fake = FakeServer({"net": double})
    with serve(fake) as address, Client(address, "grpc") as client:
        assert client.load("net") >= 0
        assert client.ready("net")
        np.testing.assert_array_equal(client.infer("net", {"x": np.ones((2, 3), np.float32)})["y"], np.full((2, 3), 2))
        with pytest.raises(RunError, match=r"^'net' refused a request by grpc: unexpected shape for input 'x'$"):
            client.infer("net", {"x": np.ones(3, np.float32)})
        client.unload("net")
        assert fake.loaded == []
        with pytest.raises(RunError, match="'other' does not become ready: failed to load 'other', no version"):
            client.load("other")


def test_a_running_server_is_asked_for_its_backends() -> None:
    with serve(FakeServer({}, ("python", "tensorrt"))) as address:
        assert available_backends(RunningServer("", address)) == ("python", "tensorrt")
    assert available_backends(None) == CONTAINER


def test_a_server_that_loads_no_models_is_named_with_its_version() -> None:
    fake = FakeServer({})
    fake.extensions = ["statistics"]
    message = r"the server at 127.0.0.1:\d+ \(fake 2.0\) loads no models: "
    with serve(fake) as address, pytest.raises(RunError, match=message) as error:
        available_backends(RunningServer("", address))
    assert "it lacks KServe's extension 'model_repository'; start Triton 24.10 or later" in str(error.value)


def test_a_model_that_never_becomes_ready_gives_the_logs_reason() -> None:
    fake = FakeServer({"net": double})
    fake.broken["net"] = (
        "load failed for model 'net': version 1 is at UNAVAILABLE state: Internal: TrustError: 1/model.onnx: was altered;\n"
    )
    with serve(fake) as address, Client(address, "grpc") as client:
        with pytest.raises(RunError) as error:
            client.load("net")
        assert error.value.message == "'net' does not become ready: 1/model.onnx: was altered"
        fake.broken.clear()
        client.load("net")


def test_a_server_that_ends_in_the_middle_is_one_sentence() -> None:
    server = serve(FakeServer({"net": double}))
    with Client(server.__enter__(), "grpc") as client:
        client.load("net")
        server.__exit__(None, None, None)
        for action in (lambda: client.infer("net", {"x": np.ones((2, 3), np.float32)}), lambda: client.load("net")):
            with pytest.raises(RunError, match=r"^'net' (refused a request by grpc|does not become ready): ") as error:
                action()
            assert "\n" not in str(error.value)


def test_a_server_that_is_not_there_is_an_error_in_one_sentence() -> None:
    with pytest.raises(RunError) as error:
        available_backends(RunningServer("", "127.0.0.1:1"))
    why = "127.0.0.1:1 is not reachable: Connection refused"
    assert error.value.message == f"the server does not answer: {why}"


def test_a_model_that_never_becomes_ready_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    given_up = Event()

    class Stuck(FakeServer):
        def RepositoryModelLoad(self, request: Any, context: Any) -> Any:
            given_up.wait()
            return super().RepositoryModelLoad(request, context)

    monkeypatch.setattr("engineworks.serving.client.LOAD_S", 0.1)
    with serve(Stuck({"net": double})) as address, Client(address, "grpc") as client:
        with pytest.raises(RunError, match=r"^'net' does not become ready: not within 0\.1 s$"):
            client.load("net")
        given_up.set()
