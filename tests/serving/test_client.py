"""The client and the choice of backends, against a server in this process."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from serving.fake_kserve import FakeServer, serve

from engineworks.errors import RunError
from engineworks.host.triton import RunningServer
from engineworks.package.package import CONTAINER
from engineworks.serving.choose import available_backends
from engineworks.serving.client import Client


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


def test_a_server_that_is_not_there_is_an_error_in_one_sentence() -> None:
    with pytest.raises(RunError, match="the server does not say who it is: ") as error:
        available_backends(RunningServer("", "127.0.0.1:1"))
    assert "\n" not in str(error.value)
