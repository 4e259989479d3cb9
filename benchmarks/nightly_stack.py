"""Everything that nightly builds need, on loopback, in one folder: a database, Prefect's server, MLflow's, S3, workers.

    with Stack(folder, say=print) as stack:      # leaving the block ends every process that was started in it
        stack.start_prefect(); stack.start_mlflow(); stack.start_s3()
        stack.run("engineworks", "deploy")
        stack.start_worker("cpu")

This process becomes the reaper of all its descendants, so that what outlives its own parent (a worker's flow run, a
database that made itself a daemon) is found and ended too.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.request import ProxyHandler, Request, build_opener

ROOT = Path(__file__).parents[1]
for place in (ROOT, ROOT / "benchmarks"):
    sys.path.insert(0, str(place))
from databases import Cluster, find_program  # noqa: E402 - it lies beside this file

from flows.local_prefect_child import NO_TELEMETRY  # noqa: E402

START_LIMIT_S = 180.0
STOP_LIMIT_S = 30.0
BUCKET = "engineworks"
PR_SET_CHILD_SUBREAPER = 36
S3_LIBRARIES, POSTGRES_LIBRARIES = ("moto", "flask_cors", "s3fs", "boto3"), ("psycopg2", "asyncpg")
OURS = ("PREFECT_", "MLFLOW_", "ENGINEWORKS_", "AWS_")
"""Beginnings of names in the environment that would send parts of the stack elsewhere."""

LOOPBACK = "127.0.0.1,localhost"


def missing_libraries(names: tuple[str, ...]) -> list[str]:
    """Those of the modules that are not installed."""
    return [name for name in names if importlib.util.find_spec(name) is None]


class Stack:
    """Servers and workers, each in a process group of its own, all ended by `stop`."""

    def __init__(self, folder: Path, echo: Callable[[str], None]) -> None:
        self.folder, self._say = folder, echo
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(OURS)},
            **NO_TELEMETRY, "MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "no_proxy": LOOPBACK, "NO_PROXY": LOOPBACK, "OMP_NUM_THREADS": "1", "PYTHONPATH": _python_path(),
            "PREFECT_HOME": str(folder / "prefect"), "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "false",
            "PREFECT_WORKER_QUERY_SECONDS": "2", "PREFECT_LOGGING_COLORS": "false",
            "ENGINEWORKS_ROOT": str(folder), "ENGINEWORKS_ARTIFACTS": str(folder / "artifacts"),
            "TMPDIR": str(folder / "temporary"),  # what is killed leaves files there
        }  # fmt: skip
        self.children: dict[str, subprocess.Popen[bytes]] = {}
        self._cluster: Cluster | None = None
        self._database_folder: Path | None = None

    def __enter__(self) -> Stack:
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, _interrupt)  # or what was started would outlive this process
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        for name in ("logs", "temporary"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def start_database(self, *, sqlite: bool = False) -> str:
        """PostgreSQL where its programs and drivers are installed, else (or where it is asked for) SQLite; which."""
        missing = missing_libraries(POSTGRES_LIBRARIES)
        if sqlite or missing or find_program("initdb") is None:
            why = f"{', '.join(missing)} is not installed" if missing else "no PostgreSQL is installed"
            self._say(f"databases: SQLite ({'as asked' if sqlite else why})")
            # What a server says while its database is locked; runs of workers have this from their deployment.
            self.environment["PREFECT_CLIENT_RETRY_EXTRA_CODES"] = "500"
            return "sqlite"
        # Apart, for root's PostgreSQL runs as another user, who may not enter the folder of everything else.
        self._database_folder = Path(tempfile.mkdtemp(prefix="engineworks-postgres-"))
        self._database_folder.chmod(0o755)
        self._cluster = Cluster(self._database_folder)
        self._cluster.start()
        urls = self._cluster.urls()
        prefect = "PREFECT_API_DATABASE_CONNECTION_URL"
        self.environment[prefect] = urls[prefect]
        self._say(f"databases: PostgreSQL at 127.0.0.1:{self._cluster.port}")
        return "postgresql"

    def start_prefect(self) -> None:
        port = free_port()
        self.environment["PREFECT_API_URL"] = f"http://127.0.0.1:{port}/api"
        self.start("prefect-server", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port))
        self.wait("prefect-server", f"{self.environment['PREFECT_API_URL']}/health")
        self._say(f"Prefect's server: {self.environment['PREFECT_API_URL']}")

    def start_s3(self) -> None:
        """moto's S3 with one bucket: the store of all, and MLflow's files."""
        port = free_port()
        url = f"http://127.0.0.1:{port}"
        self.environment |= {
            "AWS_ENDPOINT_URL": url, "MLFLOW_S3_ENDPOINT_URL": url, "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": "demo", "AWS_SECRET_ACCESS_KEY": "demo", "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": os.devnull, "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "ENGINEWORKS_STORE": f"s3://{BUCKET}/store",
        }  # fmt: skip
        self.start("s3", "python", str(ROOT / "tests" / "s3_server.py"), str(port))
        self.wait("s3", f"{url}/moto-api/")
        self.run("python", "-c", f"import boto3; boto3.client('s3').create_bucket(Bucket='{BUCKET}')")
        self._say(f"S3 (moto): {url}, store {self.environment['ENGINEWORKS_STORE']}")

    def start_mlflow(self) -> None:
        """MLflow's server; its files lie in S3 where `start_s3` was called, else in the folder."""
        port, files = free_port(), self.folder / "mlflow"
        files.mkdir(exist_ok=True)
        place = self._cluster.urls()["MLFLOW_TRACKING_URI"] if self._cluster else f"sqlite:///{files}/mlflow.db"
        in_s3 = "ENGINEWORKS_STORE" in self.environment
        artifacts = f"s3://{BUCKET}/mlflow" if in_s3 else str(files / "artifacts")
        arguments = ["--backend-store-uri", place, "--artifacts-destination", artifacts, "--workers", "1"]
        self.start("mlflow", "mlflow", "server", *arguments, "--host", "127.0.0.1", "--port", str(port))
        url = f"http://127.0.0.1:{port}"
        self.wait("mlflow", f"{url}/health")
        self.environment["MLFLOW_TRACKING_URI"] = url
        self._say(f"MLflow's server: {url}")

    def start_worker(
        self, pool: str, *, name: str = "", limit: int | None = None, artifacts: Path | None = None
    ) -> None:
        """A process worker with artifacts of its own, as on a host of its own."""
        name = f"worker-{name or pool}"
        own = {"ENGINEWORKS_ARTIFACTS": str(artifacts or self.folder / f"host-{pool}")}
        arguments = ["worker", "start", "--pool", pool, "--name", name, *(["--limit", str(limit)] if limit else [])]
        self.start(name, "prefect", *arguments, environment=own)

    def start(self, name: str, module: str, *arguments: str, environment: Mapping[str, str] | None = None) -> None:
        """Start `python -m module words` (or python itself); what it prints goes to logs/NAME.log."""
        with (self.folder / "logs" / f"{name}.log").open("ab") as log:
            self.children[name] = subprocess.Popen(
                _command(module, arguments), cwd=self.folder, env=self.environment | dict(environment or {}),
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip

    def run(self, module: str, *arguments: str, limit_s: float = 300.0, check: bool = True) -> str:
        """Run a command to its end and return what it printed. Exits with that where it fails and `check` is set."""
        done = subprocess.run(
            _command(module, arguments), cwd=self.folder, env=self.environment, stdin=subprocess.DEVNULL, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=limit_s, check=False,
        )  # fmt: skip
        if check and done.returncode != 0:
            sys.exit(f"{module} {' '.join(arguments[:4])} failed ({done.returncode}):\n{done.stdout}")
        return done.stdout

    def wait(self, name: str, url: str) -> None:
        """Until the address answers; exits with the end of the log where the process ends before, or in time."""
        opener, end = build_opener(ProxyHandler({})), time.monotonic() + START_LIMIT_S
        while time.monotonic() < end and self.children[name].poll() is None:
            try:
                with opener.open(url, timeout=5):
                    return
            except OSError:
                time.sleep(0.2)
        sys.exit(f"{name} did not start:\n{self.log_of(name)[-3000:]}")

    def call(self, path: str, body: object = None) -> Any:
        """What Prefect's API answers: a GET, or a POST of `body`."""
        request = Request(f"{self.environment['PREFECT_API_URL']}/{path}", headers={"content-type": "application/json"})
        request.data = None if body is None else json.dumps(body).encode()
        with build_opener(ProxyHandler({})).open(request, timeout=30) as answer:
            return json.load(answer)

    def workers_online(self, pool: str) -> list[str]:
        """Names of the pool's workers that Prefect's server takes for alive."""
        found = self.call(f"work_pools/{pool}/workers/filter", {})
        return [worker["name"] for worker in found if worker["status"] == "ONLINE"]

    def wait_until(self, is_true: Callable[[], bool], what: str, limit_s: float = START_LIMIT_S) -> None:
        """Asked twice a second; a server that is busy is asked again. Exits where it stays untrue."""
        end = time.monotonic() + limit_s
        while time.monotonic() < end:
            with contextlib.suppress(OSError):
                if is_true():
                    return
            time.sleep(0.5)
        sys.exit(f"waited {limit_s:.0f} s in vain for {what}")

    def end(self, name: str) -> None:
        """End one child and its group; a worker first lets its runs end."""
        _signal_group(self.children[name], signal.SIGTERM)
        _wait_for([self.children[name]], STOP_LIMIT_S)
        _signal_group(self.children.pop(name), signal.SIGKILL)

    def log_of(self, name: str) -> str:
        return (self.folder / "logs" / f"{name}.log").read_text(encoding="utf-8", errors="replace")

    def stop(self) -> None:
        """End everything, workers first: politely, then by kill -9; returns when no descendant of ours is left."""
        _ignore_interrupts()
        for name in reversed(self.children):
            _signal_group(self.children[name], signal.SIGTERM)
            _wait_for([self.children[name]], 1.0 if name.startswith("worker") else STOP_LIMIT_S)
        _wait_for([c for n, c in self.children.items() if n.startswith("worker")], STOP_LIMIT_S)
        if self._cluster is not None:
            with contextlib.suppress(SystemExit):  # it did not start; what there is of it ends below
                self._cluster.stop()
        end_descendants()
        if self._database_folder is not None:
            shutil.rmtree(self._database_folder, ignore_errors=True)


def end_descendants() -> None:
    """kill -9 of what is left of the processes that descend from this one; returns when there is none."""
    while left := descendants():
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        _reap()
        time.sleep(0.05)


def descendants() -> list[int]:
    """Living processes that descend from this one."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
        except OSError:
            continue
        if fields[0] != "Z":
            parents[int(stat.parent.name)] = int(fields[1])
    found: list[int] = []
    pending = [os.getpid()]
    while pending:
        parent = pending.pop()
        children = [pid for pid, above in parents.items() if above == parent]
        found += children
        pending += children
    return found


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def _command(module: str, arguments: tuple[str, ...]) -> list[str]:
    if module == "python":
        return [sys.executable, *arguments]
    if module == "engineworks":
        return [str(Path(sys.executable).parent / "engineworks"), *arguments]
    return [sys.executable, "-m", module, *arguments]


def _python_path() -> str:
    """This checkout first, then what the caller has there."""
    before = os.environ.get("PYTHONPATH")
    return f"{ROOT}{os.pathsep}{before}" if before else str(ROOT)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _ignore_interrupts() -> None:
    """A second Ctrl-C must not stop the stopping."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


def _signal_group(child: subprocess.Popen[bytes], number: int) -> None:
    try:
        os.killpg(child.pid, number)
    except ProcessLookupError:
        return


def _wait_for(children: list[subprocess.Popen[bytes]], limit_s: float) -> None:
    end = time.monotonic() + limit_s
    while any(child.poll() is None for child in children) and time.monotonic() < end:
        time.sleep(0.05)


def _reap() -> None:
    """Take leave of children that have ended: those of ours, and orphans that became ours."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            continue
    except ChildProcessError:
        return
