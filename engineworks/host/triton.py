"""Finds a Triton server: one that can be started here, or a running one.

    ENGINEWORKS_TRITON=/opt/tritonserver                             a folder with bin/tritonserver and backends/
    ENGINEWORKS_TRITON=/opt/tritonserver/bin/tritonserver            the same
    ENGINEWORKS_TRITON='http://127.0.0.1:8000?grpc=8001&repository=/models'     a running server and its repository

Without the variable: `.triton` in the repository, where `make triton` installs NVIDIA's wheel.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from engineworks.errors import InputError
from engineworks.settings import find_repository

TRITON = "ENGINEWORKS_TRITON"
FOLDER = ".triton"
"""Folder in the repository where `make triton` installs the server."""

ANSWERS_S = 2.0
LARGEST_ANSWER = 2**16

PYTHON_STUB = "triton_python_backend_stub"
NO_SERVER = f"no Triton server was found: run 'make triton', or set {TRITON}"


@dataclass(frozen=True)
class InstalledServer:
    """A server that this host can start. libraries: folder of shared libraries that it needs besides the system's;
    stubs: folder of the Python backend's stubs by Python version, None where the backend has one already."""

    binary: Path
    backends: Path
    libraries: Path | None = None
    stubs: Path | None = None

    @cached_property
    def available(self) -> tuple[str, ...]:
        """The names of its backends: folders with a library of that name, or with a backend in Python."""
        return tuple(
            sorted(
                folder.name
                for folder in self.backends.iterdir()
                if any((folder / file).exists() for file in (f"libtriton_{folder.name}.so", "model.py"))
            )
        )

    def stub(self) -> Path | None:
        """Return the stub for this Python. Raises `InputError` where there is none for its version."""
        if self.stubs is None:
            return None
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        stub = self.stubs / version / PYTHON_STUB
        if not stub.is_file():
            known = ", ".join(sorted(d.name for d in self.stubs.iterdir()))
            raise InputError(f"{self.binary}: its Python backend has no stub for Python {version}, only for {known}")
        return stub


@dataclass(frozen=True)
class RunningServer:
    """A server that somebody else runs: its addresses (host:port), and the folder of its models on this host, None
    where only models that it has already can be asked. metrics: address of its metrics, '' where not known."""

    http: str
    grpc: str
    repository: Path | None = None
    metrics: str = ""


Server = InstalledServer | RunningServer


def find_server(environ: Mapping[str, str] | None = None, start: Path | None = None) -> Server | None:
    """Return the server that the environment names, else the repository's, else None.

    Raises `InputError` where the environment names something else.
    """
    given = (os.environ if environ is None else environ).get(TRITON)
    if given and "://" in given:
        return _running(given)
    if given:
        found = _installed(Path(given).expanduser().resolve())
        if found is None:
            raise InputError(f"{TRITON}={given}: there is no Triton server", hint="name bin/tritonserver or its folder")
        return found
    repository = find_repository((start or Path.cwd()).resolve())
    return _installed(repository / FOLDER) if repository else None


def _installed(place: Path) -> InstalledServer | None:
    """Return the server at a path: the binary, its folder, or the folder of NVIDIA's wheel."""
    wheel = place / "pytriton" / "tritonserver"
    root = place.parent.parent if place.is_file() else wheel if wheel.is_dir() else place
    binary = root / "bin" / "tritonserver"
    if not os.access(binary, os.X_OK) or not (root / "backends").is_dir():
        return None
    libraries, stubs = root.parents[1] / "nvidia_pytriton.libs", root / "python_backend_stubs"
    return InstalledServer(
        binary, root / "backends", libraries if libraries.is_dir() else None, stubs if stubs.is_dir() else None
    )


def _running(url: str) -> RunningServer:
    parts = urlsplit(url)
    asked = {name: values[-1] for name, values in parse_qs(parts.query).items()}
    try:
        port, grpc, metrics = parts.port or 8000, int(asked.pop("grpc", "8001")), int(asked.pop("metrics", "0"))
    except ValueError:
        raise InputError(f"{TRITON}={url}: a port is not a number", hint=_EXAMPLE) from None
    repository = asked.pop("repository", None)
    if parts.scheme != "http" or not parts.hostname or asked:
        raise InputError(f"{TRITON}={url}: is no address of a server", hint=_EXAMPLE)
    folder = Path(repository).expanduser().resolve() if repository else None
    if folder is not None and not folder.is_dir():
        raise InputError(f"{TRITON}={url}: there is no folder {folder}", hint=_EXAMPLE)
    place = f"{parts.hostname}:{metrics}" if metrics else ""
    return RunningServer(f"{parts.hostname}:{port}", f"{parts.hostname}:{grpc}", folder, place)


def version_of(server: RunningServer) -> str:
    """Ask a running server for its name and version (KServe's `GET /v2`), '' where it gives none within ANSWERS_S."""
    with contextlib.suppress(ValueError, AttributeError):
        found = json.loads(http_get(server.http, "/v2"))
        return f"{found.get('name', '')} {found.get('version', '')}".strip()
    return ""


def http_get(address: str, path: str, *, limit_s: float = ANSWERS_S, most_bytes: int = LARGEST_ANSWER) -> bytes:
    """Return what the server at host:port answers to a GET, b"" where it does not answer."""
    import http.client  # half of what planning imports

    refused = contextlib.suppress(OSError, ValueError, http.client.HTTPException)
    with refused, contextlib.closing(http.client.HTTPConnection(address, timeout=limit_s)) as connection:
        connection.request("GET", path)
        return connection.getresponse().read(most_bytes)
    return b""


_EXAMPLE = "e.g. 'http://127.0.0.1:8000?grpc=8001&repository=/models'"
