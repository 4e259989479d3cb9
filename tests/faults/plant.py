"""A small plant to break: a Prefect server, workers, deployments and builds in one folder, their steps held at will."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.request import ProxyHandler, Request, build_opener

from conftest import TARGETS

from engineworks.store.store import Store
from engineworks.tracking.runs import Tracking, open_tracking
from flows.local_prefect_child import NO_TELEMETRY

CHECKOUT = Path(__file__).parents[2]
PROGRAM = Path(sys.executable).parent / "engineworks"
HOOKS = Path(__file__).parent / "hooks"
ENDED = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
LIMIT_S = 240.0
ENGINES = ("tiny/fp32/cpu", "tiny/int8/cpu")
PASSED = f"Yes: {len(ENGINES)} engines passed"
STEPS = 14
"""Of the tiny recipe."""


def wait(what: str, is_true: Callable[[], Any], limit_s: float = LIMIT_S) -> Any:
    """What `is_true` gives, once that is true."""
    end = time.monotonic() + limit_s
    while not (value := is_true()):
        assert time.monotonic() < end, f"waited {limit_s:.0f} s in vain: {what}"
        time.sleep(0.1)
    return value


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def lives(pid: int) -> bool:
    return state_and_parent(pid)[0] not in ("", "Z", "X")


def state_and_parent(pid: int) -> tuple[str, int]:
    """proc(5): the state's letter and the parent; '' for no such process."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
    except OSError:
        return "", 0
    return fields[0], int(fields[1])


def descendants(pid: int) -> set[int]:
    """Living processes below this one."""
    parents = {int(p.name): state_and_parent(int(p.name))[1] for p in Path("/proc").glob("[0-9]*")}
    found: set[int] = set()
    while more := {child for child, parent in parents.items() if parent in found | {pid}} - found:
        found |= more
    return {child for child in found if lives(child)}


def kill_all(*processes: subprocess.Popen[Any]) -> None:
    for process in processes:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


class Site:
    """A repository with the tiny recipe, whose steps are counted and can be held."""

    def __init__(self, repository: Path) -> None:
        self.root = repository
        self.artifacts = repository / "artifacts"
        self.folder = repository / "faults"
        for name in ("hold", "held", "tmp"):
            (self.folder / name).mkdir(parents=True)
        self.environment = {
            **{n: v for n, v in os.environ.items() if not n.startswith(("PREFECT_", "ENGINEWORKS_", "MLFLOW_"))},
            **NO_TELEMETRY, "ENGINEWORKS_ARTIFACTS": str(self.artifacts), "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join([str(HOOKS), str(CHECKOUT), os.environ.get("PYTHONPATH", "")]).rstrip(":"),
            "FAULTS_FOLDER": str(self.folder),
            "no_proxy": "127.0.0.1", "NO_PROXY": "127.0.0.1",
            "TMPDIR": str(self.folder / "tmp"),  # where the lock lies that lets builds of one host measure in turns
        }  # fmt: skip

    def hold(self, step: str) -> None:
        """Let this step wait at its end, its files written but not published."""
        (self.folder / "hold" / step.replace("/", "~")).touch()

    def release(self, step: str) -> None:
        (self.folder / "hold" / step.replace("/", "~")).unlink()
        (self.folder / "held" / step.replace("/", "~")).unlink(missing_ok=True)

    def held(self, step: str, limit_s: float = LIMIT_S) -> int:
        """Pid of the child that waits in this step, once it does."""
        file = self.folder / "held" / step.replace("/", "~")
        wait(f"{step} to be held", file.exists, limit_s)
        return int(file.read_text(encoding="ascii"))

    def forget_held(self, step: str) -> None:
        """So that `held` waits for the next child that comes there."""
        (self.folder / "held" / step.replace("/", "~")).unlink()

    def counts(self, event: str = "ended") -> Counter[str]:
        """How often each step was started, or ended, so far."""
        log = self.folder / "steps.log"
        lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
        return Counter(step for name, step, _ in map(str.split, lines) if name == event)

    def command(self, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(PROGRAM), *words], cwd=self.root, env=self.environment | environment,
            capture_output=True, text=True, check=False, timeout=LIMIT_S,
        )  # fmt: skip

    def start(self, *words: str, **environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [str(PROGRAM), *words], cwd=self.root, env=self.environment | environment,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip

    def edit(self, old: str, new: str) -> None:
        file = self.root / "recipes" / "tiny.yaml"
        text = file.read_text(encoding="utf-8")
        assert old in text
        file.write_text(text.replace(old, new, 1), encoding="utf-8")

    @property
    def store(self) -> Store:
        return Store(self.artifacts / "store")

    def half_written(self) -> list[Path]:
        return list((self.artifacts / "store" / "partial").glob("*"))

    @property
    def tracking(self) -> Tracking:
        return open_tracking(self.artifacts, self.environment.get("MLFLOW_TRACKING_URI"))

    def runs(self, kind: str = "build") -> list[Any]:
        return self.tracking.find_runs(kind=kind)

    def assert_as_undisturbed(
        self, undisturbed: Mapping[str, str], *, whole: int = 1, failed: int = 0, killed: int = 0
    ) -> None:
        """The same steps under the same keys, each sound; the records are whole.

        undisturbed: step id by key, of a build that nothing happened to. whole: builds that ended well. failed: those
        that ended and said that a step had failed. killed: those that were cancelled. Each has a record of its own; a
        build that died by kill -9 shares that of the next.
        """
        store = self.store
        artifacts = {key: store.get(key) for key in store.keys()}
        assert None not in artifacts.values(), "an artifact is damaged"
        found = {key: a.step for key, a in artifacts.items() if a is not None and key in undisturbed}
        assert found == undisturbed
        assert self.half_written() == []
        parents = self.runs()
        assert Counter(run.status for run in parents) == Counter(
            {"FINISHED": whole, "FAILED": failed, "KILLED": killed}
        )
        for parent in parents:
            if parent.status == "FINISHED":
                children = self.tracking.find_runs(kind="engine", parent_run_id=parent.run_id)
                assert {c.name: c.status for c in children} == dict.fromkeys(ENGINES, "FINISHED")
                assert {c.tags["engineworks.verdict"] for c in children} == {"pass"}

    def assert_nothing_repeated(self) -> None:
        repeated = {step: n for step, n in self.counts().items() if n > 1}
        assert not repeated, repeated


class Server:
    """A Prefect server on loopback that can be killed and started again."""

    def __init__(self, home: Path, database: str = "") -> None:
        self.home, self.port = home, free_port()
        self.url = f"http://127.0.0.1:{self.port}/api"
        self.environment = {
            "PREFECT_HOME": str(home), "PREFECT_API_URL": self.url, "PREFECT_WORKER_QUERY_SECONDS": "1",
            "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "false",
        } | ({"PREFECT_API_DATABASE_CONNECTION_URL": database} if database else {})  # fmt: skip
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, environment: Mapping[str, str]) -> None:
        words = ["server", "start", "--host", "127.0.0.1", "--port", str(self.port)]
        with (self.home / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "prefect", *words], env={**environment, **self.environment}, cwd="/",
                stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        wait("Prefect's server", lambda: self.call("health") is True, 120)

    def kill(self) -> None:
        if self._process is not None:
            kill_all(self._process)

    def call(self, path: str, body: object = None, method: str = "") -> Any:
        """The answer as JSON, None for any error."""
        data = None if body is None else json.dumps(body).encode()
        request = Request(f"{self.url}/{path}", data=data, headers={"content-type": "application/json"})
        request.method = method or ("GET" if body is None else "POST")
        try:
            with build_opener(ProxyHandler({})).open(request, timeout=30) as answer:
                return json.loads(answer.read() or b"true")
        except OSError:
            return None


def deploy(server: Server, environment: Mapping[str, str]) -> None:
    """Pools, deployments and the automation of the tests' targets, by `engineworks deploy`."""
    (server.home / "recipes").mkdir()
    (server.home / "recipes" / "_targets.yaml").write_text(TARGETS, encoding="utf-8")
    subprocess.run(
        [str(PROGRAM), "deploy"],
        cwd=server.home,
        env={**environment, **server.environment},
        check=True,
        timeout=LIMIT_S,
    )


class Plant:
    """A site whose builds run on workers of a server."""

    def __init__(self, site: Site, server: Server) -> None:
        self.site, self.server = site, server
        self.environment = {**site.environment, **server.environment, "ENGINEWORKS_ROOT": str(site.root)}
        self._workers: list[tuple[str, str, subprocess.Popen[bytes]]] = []
        self._before = {run["id"] for run in self._all()}

    def start_worker(self, pool: str, **environment: str) -> subprocess.Popen[bytes]:
        name = f"{pool}-{self.site.root.name}-{len(self._workers)}"
        with (self.site.root / f"{name}.log").open("wb") as log:
            worker = subprocess.Popen(
                [sys.executable, "-m", "prefect", "worker", "start", "--pool", pool, "--name", name],
                env=self.environment | environment, cwd="/", stdout=log, stderr=subprocess.STDOUT,
                start_new_session=True,
            )  # fmt: skip
        self._workers.append((pool, name, worker))
        wait(f"worker {name}", lambda: name in self._online(pool), 90)
        return worker

    def _online(self, pool: str) -> set[str]:
        return {worker["name"] for worker in self.server.call(f"work_pools/{pool}/workers/filter", {}) or ()}

    def forget_workers(self) -> None:
        """Dead workers count as online for a while: let the server forget them."""
        for pool, name, worker in self._workers:
            if worker.poll() is not None:
                self.server.call(f"work_pools/{pool}/workers/{name}", method="DELETE")

    def stop(self) -> None:
        """Kill what is left, and let the next test find a server without runs."""
        for _, _, worker in self._workers:
            for pid in descendants(worker.pid):
                kill(pid)
            kill_all(worker)
        self.forget_workers()
        for run in self._all():
            if run["state"]["type"] not in ENDED:
                state = {"state": {"type": "CANCELLED", "message": "its test is over"}, "force": True}
                self.server.call(f"flow_runs/{run['id']}/set_state", state)

    def order(self, deployment: str, **parameters: Any) -> str:
        """Start a run of a deployment; returns its id."""
        body = {"state": {"type": "SCHEDULED"}, "parameters": parameters, "idempotency_key": f"{time.monotonic()}"}
        found = wait(deployment, lambda: self.server.call(f"deployments/name/{deployment}"), 60)
        # A server on SQLite answers 500 while its database is locked.
        run = wait("a run", lambda: self.server.call(f"deployments/{found['id']}/create_flow_run", body), 60)
        return str(run["id"])

    def order_recipe(self) -> str:
        return self.order("build-recipe/build-recipe", recipe="recipes/tiny.yaml", distributed=True)

    def state(self, run: str) -> tuple[str, str]:
        found = self.server.call(f"flow_runs/{run}")
        return (found["state"]["type"], found["state"]["message"] or "") if found else ("", "")

    def end(self, run: str, limit_s: float = LIMIT_S) -> tuple[str, str]:
        """The last state of a run and its words."""
        wait(f"run {run} to end; its logs: {self.site.root}", lambda: self.state(run)[0] in ENDED, limit_s)
        return self.state(run)

    def cancel(self, run: str) -> None:
        """As Prefect's page does it."""
        body = {"state": {"type": "CANCELLING", "message": "cancelled in a test"}}
        assert self.server.call(f"flow_runs/{run}/set_state", body)

    def runs_of(self, flow: str) -> list[tuple[str, str]]:
        """Name and state of this plant's runs of a flow, in the order of their making."""
        found = [run for run in self._all(flow) if run["id"] not in self._before]
        return [(run["name"], run["state"]["type"]) for run in sorted(found, key=lambda run: run["created"])]

    def messages_of(self, flow: str) -> list[str]:
        """The last words of this plant's runs of a flow."""
        return [run["state"]["message"] for run in self._all(flow) if run["id"] not in self._before]

    def id_of(self, flow: str, name: str) -> str:
        """Id of the newest run of this name."""
        return max((run for run in self._all(flow) if run["name"] == name), key=lambda run: run["created"])["id"]  # type: ignore[no-any-return]

    def _all(self, flow: str = "") -> list[dict[str, Any]]:
        flows = {"flows": {"name": {"any_": [flow]}}} if flow else {}
        return wait(
            "the runs", lambda: (found := self.server.call("flow_runs/filter", flows)) is not None and [found], 60
        )[0]  # type: ignore[no-any-return]


def kill(pid: int) -> None:
    """SIGKILL, and wait until it is gone."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    wait(f"{pid} to be gone", lambda: not lives(pid), 10)
