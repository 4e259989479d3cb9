"""A Triton server on loopback: started for one purpose, and gone afterwards with everything that it started."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from engineworks.errors import RunError
from engineworks.host.child.start import descendants
from engineworks.host.triton import PYTHON_STUB, InstalledServer, RunningServer, Server, http_get
from engineworks.package.package import CONTAINER
from engineworks.serving import guard
from engineworks.serving.client import Client, last_error

READY_S, STOP_S = 60.0, 15.0
ENDS_S = 1.0
"""Seconds between a server's closed connections and its end."""

ATTEMPTS = 3
"""Starts, each on other ports: another program may take a free port before the server does."""

ARENAS = "2"
"""How many heaps glibc keeps for the server's threads (`MALLOC_ARENA_MAX`), unless the environment says otherwise. By
default 8 per core: on an H200 every load of a model on a GPU, even of one without an engine, kept 8 MiB in another."""

TAKEN = ("address already in use", "failed to start HTTP service", "failed to start GRPC service", "bind")
SHARED_MEMORY = Path("/dev/shm")


class StartedServer:
    """A server process in a group of its own, and its log. start_s: seconds from the start until it answered."""

    def __init__(self, popen: subprocess.Popen[bytes], addresses: RunningServer, folder: Path, name: str) -> None:
        self.addresses, self.name, self.start_s = addresses, name, 0.0
        self._popen, self._folder = popen, folder

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def tree(self) -> list[int]:
        """Return the ids of the server and of all that it started."""
        return [self.pid, *descendants(self.pid)]

    @property
    def log(self) -> str:
        return (self._folder / "log.txt").read_text(encoding="utf-8", errors="replace")

    def alive(self) -> bool:
        return self._popen.poll() is None

    def why_ended(self, wait_s: float = 0.0) -> str:
        """Say in one sentence how the server ended, '' while it runs. wait_s: for a server that is about to end."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._popen.wait(wait_s)
        code = self._popen.poll()
        if code is None:
            return ""
        if code < 0:
            return f"the Triton server was ended by {signal.Signals(-code).name}"
        message = last_error(self.log)
        return f"the Triton server ended with exit code {code}" + (f": {message}" if message else "")

    def stop(self) -> None:
        """Ask the server to end, then kill its group. Its shared memory is removed."""
        self._popen.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._popen.wait(STOP_S)
        self.kill()

    def kill(self) -> None:
        """Kill the server and all of its group at once: its Python models outlive a server that was killed."""
        if self.alive() or not Path(f"/proc/{self.pid}").exists():  # else the kernel gave its number to somebody else
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._popen.wait(STOP_S)
        for left in SHARED_MEMORY.glob(f"{self.name}*"):
            left.unlink(missing_ok=True)


@contextlib.contextmanager
def started(
    server: InstalledServer, repository: Path, *, env: Mapping[str, str] | None = None
) -> Iterator[StartedServer]:
    """Start a server without models (they are loaded by name), and stop it afterwards whatever happens.

    env: the server's environment, by default ours. Python models run in our interpreter. Raises `RunError` where it
    does not become ready. A `RunError` within the context gets the server's log, and says how the server ended where it
    did: the client's errors only follow from that.
    """
    environ = dict(os.environ if env is None else env)
    environ.setdefault("MALLOC_ARENA_MAX", ARENAS)
    environ["PATH"] = os.pathsep.join((str(Path(sys.executable).parent), environ.get("PATH", "")))
    with tempfile.TemporaryDirectory(prefix="engineworks-triton-") as folder:
        process = _start(server, repository, Path(folder), environ)
        try:
            yield process
        except RunError as error:
            if ended := process.why_ended(ENDS_S):
                raise RunError(ended, log=process.log) from None
            error.log = error.log or process.log
            raise
        finally:
            process.stop()


def _start(server: InstalledServer, repository: Path, folder: Path, env: dict[str, str]) -> StartedServer:
    backends = _backends(server, folder / "backends")
    if server.libraries is not None:
        env["LD_LIBRARY_PATH"] = os.pathsep.join(filter(None, (str(server.libraries), env.get("LD_LIBRARY_PATH", ""))))
    for attempt in range(ATTEMPTS):
        process = _start_once(server, repository, folder, backends, env)
        try:
            _wait(process)
        except RunError as error:
            process.kill()
            if attempt + 1 == ATTEMPTS or not any(text in error.message for text in TAKEN):
                raise
        except BaseException:
            process.kill()
            raise
        else:
            return process
    raise AssertionError  # the last attempt raises


def _start_once(
    server: InstalledServer, repository: Path, folder: Path, backends: Path, env: Mapping[str, str]
) -> StartedServer:
    http_port, grpc_port, metrics_port = _free_ports(3)
    name = f"engineworks-{os.getpid()}-{secrets.token_hex(4)}"
    arguments = [
        f"--model-repository={repository}", f"--backend-directory={backends}", "--model-control-mode=explicit",
        "--http-address=127.0.0.1", f"--http-port={http_port}", "--grpc-address=127.0.0.1", f"--grpc-port={grpc_port}",
        "--metrics-address=127.0.0.1", f"--metrics-port={metrics_port}", "--metrics-interval-ms=500",
        f"--id={name}", "--disable-auto-complete-config", "--exit-timeout-secs=5",
        f"--backend-config=python,shm-region-prefix-name={name}", "--metrics-config=summary_latencies=true",
    ]  # fmt: skip
    with (folder / "log.txt").open("wb") as log:
        popen = subprocess.Popen(
            [sys.executable, "-I", "-S", guard.__file__, str(os.getpid()), str(server.binary), *arguments],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=dict(env), start_new_session=True, cwd=folder,
        )  # fmt: skip
    http, grpc, metrics = (f"127.0.0.1:{port}" for port in (http_port, grpc_port, metrics_port))
    addresses = RunningServer(http, grpc, repository, metrics)
    return StartedServer(popen, addresses, folder, name)


def _wait(process: StartedServer) -> None:
    """Wait until the server answers. Raises `RunError` where it ends first, or does not within `READY_S`."""
    start = time.monotonic()
    while time.monotonic() - start < READY_S:
        if ended := process.why_ended():
            raise RunError(ended, log=process.log)
        # on a port that was taken, a server of another name answers
        if process.name.encode() in http_get(process.addresses.http, "/v2", limit_s=1.0):
            process.start_s = time.monotonic() - start
            return
        time.sleep(0.02)
    raise RunError(f"the Triton server did not answer within {READY_S:g} s: {last_error(process.log)}", log=process.log)


def _backends(server: InstalledServer, folder: Path) -> Path:
    """Return the folder of backends: the server's own, or a copy with the stub of this Python.

    Triton refuses links that lead out of a backend's folder, so files are hard links where the file system allows it.
    """
    stub = server.stub()
    if stub is None:
        return server.backends
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(server.backends, folder, copy_function=_link)
    _link(stub, folder / "python" / PYTHON_STUB)
    return folder


def _link(source: Path | str, target: Path | str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system
        shutil.copy2(source, target)


def _free_ports(count: int) -> list[int]:
    """Return ports that are free now, all different."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def available_backends(server: Server | None) -> tuple[str, ...]:
    """Return the server's backends that a package can use; those of NVIDIA's container without a server.

    A running server is asked. Raises `RunError` where it does not answer.
    """
    if server is None:
        return CONTAINER
    if isinstance(server, InstalledServer):
        return server.available
    with Client(server.grpc, "grpc") as client:
        client.require_loading()
        return tuple(name for name in CONTAINER if client.has_backend(name))
