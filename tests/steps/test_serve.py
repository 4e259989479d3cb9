"""The step that serves a package, as far as no server of Triton is needed."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from serving.fake_kserve import FakeServer, serve

from engineworks.errors import RunError
from engineworks.serving.client import Client
from engineworks.steps.serve import _found, _placed


def test_any_server_of_the_protocol_is_asked_for_a_model_that_it_has() -> None:
    fake = FakeServer({"net": lambda feeds: feeds})
    fake.extensions = []  # it loads none
    fake.loaded = ["net"]
    settings: Any = SimpleNamespace(triton=SimpleNamespace(dynamic_batching=None))
    with serve(fake) as address, Client(address, "grpc") as client:

        def found(model: str, **params: Any) -> dict[str, Any]:
            job: Any = SimpleNamespace(params=params)
            return _found(job, client, model, settings)

        assert found("net")["server"]["name"] == "fake"
        with pytest.raises(RunError, match=f"^the server at {address} has no model 'other'; load the package there"):
            found("other")
        with pytest.raises(RunError, match="loads are measured in a server's repository"):
            found("net", sweep=True)


def test_a_model_in_its_place_is_left_alone(tmp_path: Path) -> None:
    for folder in ("package/net", "models/net"):
        (tmp_path / folder).mkdir(parents=True)
    with pytest.raises(RunError, match="holds a model 'net' already"):
        _placed(tmp_path / "package" / "net", tmp_path / "models")
    assert _placed(tmp_path / "package" / "net", tmp_path / "more") == tmp_path / "more" / "net"
