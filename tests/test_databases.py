"""MLflow and Prefect on a real PostgreSQL, started here on loopback: eight workers at once lose nothing."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from engineworks.errors import TrackingError
from engineworks.tracking.runs import open_tracking

pytestmark = [pytest.mark.postgres, pytest.mark.xdist_group("postgres")]
for library in ("psycopg2", "asyncpg", "mlflow", "prefect"):
    pytest.importorskip(library)

ROOT = Path(__file__).parents[1]
WORKERS = 8
ENGINES = 5


def load_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("databases", ROOT / "benchmarks" / "databases.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def urls() -> Iterator[dict[str, str]]:
    # Not in pytest's own folder: every pytest of this user closes it to others, and root's PostgreSQL is not root's.
    with tempfile.TemporaryDirectory(prefix="engineworks-postgres-", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)
        cluster = load_script().Cluster(Path(folder))
        cluster.start()
        try:
            yield cluster.urls()
        finally:
            cluster.stop("immediate")


def python(code: str, *arguments: object, **environ: str) -> subprocess.Popen[str]:
    kept = {n: v for n, v in os.environ.items() if "MLFLOW" not in n and "PREFECT" not in n}
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        env=kept | {"PYTHONPATH": str(ROOT)} | environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


RECORD = """
    import sys
    from pathlib import Path
    from engineworks.tracking.records import EngineRecord
    from engineworks.tracking.runs import open_tracking
    artifacts, uri, worker, engines = sys.argv[1:]
    tracking = open_tracking(Path(artifacts), uri)
    for build in range(3):
        recipe = f"worker{worker}-{build}"
        with tracking.start_build(recipe, f"key-{recipe}", {}, {"a": "1"}) as run:
            for number in range(int(engines)):
                run.record_engine(EngineRecord(f"{recipe}/fp32/t{number}", metrics={"latency_ms": 1.0}))
            run.finish("FINISHED", metrics={"seconds": 1.0})
        print(run.run_id, flush=True)
"""


def test_eight_workers_on_a_fresh_database_record_every_run(urls: dict[str, str], tmp_path: Path) -> None:
    """None waits for the others: they also race for the making of MLflow's tables. Each has a folder of its own."""
    uri = urls["MLFLOW_TRACKING_URI"]
    workers = [python(RECORD, tmp_path / "artifacts", uri, n, ENGINES) for n in range(WORKERS)]
    ended = [worker.communicate() for worker in workers]
    assert [worker.returncode for worker in workers] == [0] * WORKERS, [said for _, said in ended]
    assert not any("lock" in said.lower() for _, said in ended)
    tracking = open_tracking(tmp_path / "artifacts", uri)
    runs = [run for said, _ in ended for run in said.split()]
    assert len(set(runs)) == 3 * WORKERS
    for run in runs:
        assert tracking.get_run(run).status == "FINISHED"
        engines = tracking.find_runs(parent_run_id=run, limit=100)
        assert [e.status for e in engines] == ["FINISHED"] * ENGINES
        assert all(e.metrics == {"latency_ms": 1.0} for e in engines)


def test_a_database_that_refuses_the_password_is_told_without_it(urls: dict[str, str], tmp_path: Path) -> None:
    before, _, place = urls["MLFLOW_TRACKING_URI"].rpartition("@")
    wrong = f"{before.rpartition(':')[0]}:secret@{place}"
    with pytest.raises(TrackingError, match="cannot be opened") as caught:
        open_tracking(tmp_path, wrong).find_runs()
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def prefect_server(urls: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    import socket
    import time
    import urllib.request

    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    home = tmp_path_factory.mktemp("prefect")
    name = "PREFECT_API_DATABASE_CONNECTION_URL"
    environ = {n: v for n, v in os.environ.items() if "PREFECT" not in n}
    environ |= {name: urls[name], "PREFECT_HOME": str(home), "DO_NOT_TRACK": "true"}
    environ |= {"PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
    words = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    with (home / "log").open("w") as log:
        server = subprocess.Popen(words, env=environ, stdout=log, stderr=log)
    try:
        for _ in range(600):
            assert server.poll() is None, (home / "log").read_text()[-2000:]
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/api/health", timeout=5)
                break
            except OSError:
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/api"
        assert "deadlock" not in (home / "log").read_text().lower()
    finally:
        server.kill()
        server.wait()


FLOW = """
    import sys
    from prefect import flow, task
    from flows.local_prefect import drain
    @task
    def step(n: int) -> int:
        return n
    @flow(name="eight")
    def eight(worker: int) -> int:
        return sum(f.result() for f in step.map(range(10)))
    assert eight(int(sys.argv[1])) == 45
    assert drain()
"""


def test_eight_flow_processes_at_once_lose_no_task_run(
    prefect_server: str, urls: dict[str, str], tmp_path: Path
) -> None:
    import time

    workers = [
        python(
            FLOW, n, PREFECT_API_URL=prefect_server, PREFECT_HOME=str(tmp_path / str(n)), DO_NOT_TRACK="true",
            PREFECT_SERVER_ANALYTICS_ENABLED="false",
        )
        for n in range(WORKERS)
    ]  # fmt: skip
    ended = [worker.communicate() for worker in workers]
    assert [worker.returncode for worker in workers] == [0] * WORKERS, [said[-2000:] for _, said in ended]
    assert not any("locked" in said for _, said in ended)

    import psycopg2

    link = psycopg2.connect(urls["PREFECT_API_DATABASE_CONNECTION_URL"].replace("+asyncpg", ""))
    link.autocommit = True
    counts: tuple[int, int] = (0, 0)
    for _ in range(600):  # the server writes task runs some time after it was sent them
        with link.cursor() as cursor:
            cursor.execute(
                "SELECT (SELECT count(*) FROM flow_run WHERE state_type = 'COMPLETED'),"
                " (SELECT count(*) FROM task_run WHERE state_type = 'COMPLETED')"
            )
            counts = cursor.fetchone()
        if counts == (WORKERS, WORKERS * 10):
            break
        time.sleep(0.2)
    link.close()
    assert counts == (WORKERS, WORKERS * 10)
