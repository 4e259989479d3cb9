"""Which server is taken, and what is wrong with a name of one."""

from __future__ import annotations

import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest

from engineworks.errors import InputError
from engineworks.host.triton import PYTHON_STUB, InstalledServer, RunningServer, find_server, version_of

VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"


def installed(root: Path, *, wheel: bool = False) -> Path:
    """A folder that looks like a server's."""
    server = root / "pytriton" / "tritonserver" if wheel else root
    for backend in ("python", "onnxruntime"):
        (server / "backends" / backend).mkdir(parents=True)
        (server / "backends" / backend / f"libtriton_{backend}.so").touch()
    (server / "backends" / "half").mkdir()
    (server / "bin").mkdir()
    (server / "bin" / "tritonserver").touch(mode=0o755)
    if wheel:
        (root / "nvidia_pytriton.libs").mkdir()
        (server / "python_backend_stubs" / VERSION).mkdir(parents=True)
        (server / "python_backend_stubs" / VERSION / PYTHON_STUB).touch()
    return server


@pytest.mark.parametrize("name", ["", "bin/tritonserver"])
def test_a_server_is_named_by_its_folder_or_binary(tmp_path: Path, name: str) -> None:
    installed(tmp_path)
    found = find_server({"ENGINEWORKS_TRITON": str(tmp_path / name)})
    assert isinstance(found, InstalledServer)
    assert (found.binary, found.available) == (tmp_path / "bin" / "tritonserver", ("onnxruntime", "python"))
    assert (found.libraries, found.stub()) == (None, None)


def test_without_a_name_it_is_what_make_triton_installed(tmp_path: Path) -> None:
    (tmp_path / ".git").mkdir()
    assert find_server({}, tmp_path) is None
    server = installed(tmp_path / ".triton", wheel=True)
    found = find_server({}, tmp_path / "recipes")
    assert isinstance(found, InstalledServer)
    assert found.libraries == tmp_path / ".triton" / "nvidia_pytriton.libs"
    assert found.stub() == server / "python_backend_stubs" / VERSION / PYTHON_STUB


def test_a_python_without_a_stub_is_refused(tmp_path: Path) -> None:
    server = installed(tmp_path, wheel=True)
    (server / "python_backend_stubs" / VERSION).rename(server / "python_backend_stubs" / "2.7")
    found = find_server({"ENGINEWORKS_TRITON": str(tmp_path)})
    assert isinstance(found, InstalledServer)
    with pytest.raises(InputError, match=rf"no stub for Python {VERSION}, only for 2\.7"):
        found.stub()


def test_a_running_server_is_named_by_its_addresses_and_repository(tmp_path: Path) -> None:
    url = f"http://box:9000?grpc=9001&repository={tmp_path}"
    assert find_server({"ENGINEWORKS_TRITON": url}) == RunningServer("box:9000", "box:9001", tmp_path)
    assert find_server({"ENGINEWORKS_TRITON": "http://box"}) == RunningServer("box:8000", "box:8001")


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ("/nowhere", "there is no Triton server"),
        ("http://box:http", "a port is not a number"),
        ("http://box?grpc=x", "a port is not a number"),
        ("grpc://box", "is no address of a server"),
        ("http://box?repo=/models", "is no address of a server"),
        ("http://box?repository=/nowhere", "there is no folder /nowhere"),
    ],
)
def test_anything_else_is_refused(given: str, why: str) -> None:
    with pytest.raises(InputError, match=why):
        find_server({"ENGINEWORKS_TRITON": given})


@pytest.mark.parametrize(
    ("answer", "version"),
    [
        ('{"name": "triton", "version": "2.51.0", "extensions": []}', "triton 2.51.0"),
        ("{}", ""),
        ("[]", ""),
        ("no", ""),
    ],
)
def test_a_running_server_says_its_version(answer: str, version: str) -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(answer.encode() if self.path == "/v2" else b"")

        def log_message(self, *_: object) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Handler) as http:
        Thread(target=http.handle_request, daemon=True).start()
        address = f"127.0.0.1:{http.server_port}"
        assert version_of(RunningServer(address, address)) == version
    assert version_of(RunningServer(address, address)) == ""
