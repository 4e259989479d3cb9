"""Nightlies with a real Prefect server and real process workers: minutes, so only `make test-slow` runs them."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import ProxyHandler, Request, build_opener

import pytest

from engineworks.recipe.load import load_targets
from flows.deploy import deploy
from flows.local_prefect_child import NO_TELEMETRY

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("flows"), pytest.mark.timeout(600)]
CHECKOUT = Path(__file__).parents[2]
NIGHT_LIMIT_S = 240.0


class Server:
    """A Prefect server and process workers, each in a process group of its own that ends with the test."""

    def __init__(self, root: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}/api"
        self._root = root
        self._children: list[subprocess.Popen[bytes]] = []
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}, **NO_TELEMETRY,
            "PREFECT_HOME": str(root / "prefect"), "PREFECT_API_URL": self.url, "PREFECT_WORKER_QUERY_SECONDS": "2",
            "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "false", "no_proxy": "127.0.0.1", "NO_PROXY": "127.0.0.1",
            "ENGINEWORKS_ROOT": str(root), "ENGINEWORKS_ARTIFACTS": str(root / "artifacts"), "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(CHECKOUT),
        }  # fmt: skip
        self.start("server", "start", "--host", "127.0.0.1", "--port", str(port))
        self.wait(lambda: self.call("health") is True, 120)

    def start(self, *arguments: str) -> None:
        log = (self._root / f"{'-'.join(arguments[:4])}.log").open("wb")
        command = [sys.executable, "-m", "prefect", *arguments]
        self._children.append(
            subprocess.Popen(
                command, env=self.environment, cwd="/", stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        )

    def stop(self) -> None:
        for child in reversed(self._children):
            os.killpg(child.pid, signal.SIGTERM)
        for child in self._children:
            try:
                child.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()

    def call(self, path: str, body: object = None) -> Any:
        request = Request(f"{self.url}/{path}", headers={"content-type": "application/json"})
        if body is not None:
            request.data = json.dumps(body).encode()
        try:
            with build_opener(ProxyHandler({})).open(request, timeout=30) as answer:
                return json.load(answer)
        except OSError:
            return None

    def wait(self, is_true: Any, limit_s: float) -> None:
        end = time.monotonic() + limit_s
        while not is_true():
            assert time.monotonic() < end, "waited in vain"
            time.sleep(0.5)

    def night(self) -> tuple[str, str]:
        """Run the deployment nightly/nightly: the last state's type and message."""
        found = self.call("deployments/name/nightly/nightly")
        order = {"state": {"type": "SCHEDULED"}, "idempotency_key": f"{time.monotonic()}"}
        run: dict[str, Any] = {}
        # A server on SQLite answers 500 while its database is locked.
        self.wait(lambda: run.update(self.call(f"deployments/{found['id']}/create_flow_run", order) or {}) or run, 60)

        def state() -> Any:
            return (self.call(f"flow_runs/{run['id']}") or {"state": {"type": "?"}})["state"]

        self.wait(lambda: state()["type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED"), NIGHT_LIMIT_S)
        return state()["type"], state()["message"]

    def runs(self) -> list[str]:
        """Names of all engine runs, with their pools."""
        found = self.call("flow_runs/filter", {"flows": {"name": {"any_": ["build-engine"]}}})
        return sorted(f"{run['name']} on {run['work_pool_name']}: {run['state']['type']}" for run in found)


@pytest.fixture
def server(repository: Path) -> Iterator[Server]:
    server = Server(repository)
    try:
        yield server
    finally:
        server.stop()


def test_a_night_spreads_engines_over_pools_and_the_next_finds_nothing_to_do(
    repository: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PREFECT_API_URL", "PREFECT_HOME", "no_proxy", "NO_PROXY", "PYTHONPATH"):
        monkeypatch.setenv(name, server.environment[name])
    recipes = repository / "recipes"
    text = (recipes / "tiny.yaml").read_text(encoding="utf-8")
    wrong = text.replace("recipe: tiny", "recipe: wrong").replace("precisions:", "precisons:")
    (recipes / "wrong.yaml").write_text(wrong, encoding="utf-8")
    said = deploy(load_targets(recipes), repository)
    assert said == deploy(load_targets(recipes), repository), "a second time updates what is there"
    assert [p["concurrency_limit"] for p in server.call("work_pools/filter", {}) if p["name"] == "rtx40"] == [1]
    assert len(server.call("automations/filter", {})) == 1
    server.start("worker", "start", "--pool", "cpu")
    server.start("worker", "start", "--pool", "prepare")
    server.wait(lambda: server.call("work_pools/prepare/workers/filter", {}), 60)

    state, message = server.night()
    assert state == "FAILED", message
    assert message.splitlines()[0] == "2 recipes (1 refused, 1 built), 2 engines (2 pass)"
    assert "wrong: refused · " in message
    assert "did you mean 'precisions'?" in message
    engines = [f"tiny/{precision}/cpu on prepare: COMPLETED" for precision in ("fp32", "int8")]
    assert server.runs() == engines

    (recipes / "wrong.yaml").unlink()
    state, message = server.night()
    assert (state, message) == ("COMPLETED", "1 recipe (1 unchanged), 2 engines (2 pass)")
    assert server.runs() == engines
