"""The reader of MLflow's file gives exactly what MLflow's client gives, for the installed version of MLflow."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from engineworks.errors import TrackingError
from engineworks.tracking.aliases import HISTORY, Slot
from engineworks.tracking.champion_list import list_champions, standings, versions_behind
from engineworks.tracking.connection import Connection
from engineworks.tracking.opening import ARTIFACT_FOLDER, DATABASE_FILE, connect
from engineworks.tracking.reader import Reader, RunQuery
from engineworks.tracking.records import (
    ENGINE,
    ENGINE_BUILD_KEY,
    ENGINE_DIGEST,
    KIND,
    PARENT,
    RECIPE,
    STORE_KEYS,
    Batch,
)
from engineworks.tracking.runs import open_tracking
from engineworks.tracking.sqlite_reader import SqliteReader, open_reader

pytest.importorskip("mlflow")
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")

EXPERIMENT = "engineworks"


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("art % facts")  # characters that an SQLite URI escapes


@pytest.fixture(scope="module")
def client(artifacts: Path) -> Connection:
    """A store with builds and engines, deleted ones among them, and a registry with champions lost in every way."""
    opened = connect(artifacts, f"sqlite:///{artifacts / DATABASE_FILE}", EXPERIMENT)
    link = Connection(opened.open_client, opened.experiment_id, opened.uri, opened.database)
    for number in range(3):
        build = link.create_run("r", {KIND: "build", RECIPE: "r"}, started_at=100.0 + number // 2)  # two at once
        for precision in ("fp32", "int8"):
            engine = link.create_run(
                f"r/{precision}/cpu", {KIND: "engine", RECIPE: "r", PARENT: build, ENGINE: f"r/{precision}/cpu"}, 101.0
            )
            metrics = {"p50": 0.1 * number, "cosine/out": -1.0, "large": 1e300}
            tags = {STORE_KEYS: '["k"]', "quote": "it's 100%"}
            link.log(engine, Batch({"precision": precision, "empty": ""}, metrics, tags, {}), {"a/b.json": "{}"}, {})
            link.end_run(engine, "FINISHED")
        link.end_run(build, "FAILED" if number == 0 else "FINISHED")
    gone = link.create_run("gone", {KIND: "build", RECIPE: "r"})
    link.client.delete_run(gone)
    other = link.client.create_experiment("other")
    link.client.create_run(other, tags={STORE_KEYS: '["o"]'})
    registry(link)
    return link


def registry(link: Connection) -> None:
    link.client.create_registered_model("of another", tags={"team": "x"})
    link.client.create_registered_model("empty", tags={RECIPE: "empty"})
    link.client.create_registered_model(
        "r", tags={RECIPE: "r", f"{HISTORY}cpu-fp32": "[1, 2]", f"{HISTORY}cpu-int8": "?"}
    )
    for number, precision in enumerate(("fp32", "fp32", "int8", "int8"), 1):
        engine = f"r/{precision}/cpu"
        tags = {ENGINE: engine, ENGINE_DIGEST: f"d{number}", ENGINE_BUILD_KEY: f"k{number}"}
        link.client.create_model_version("r", source="/nowhere", tags=tags)
    link.client.set_registered_model_alias("r", "champion-cpu-fp32", "2")
    link.client.set_registered_model_alias("r", "champion-cpu-fp16", "3")
    link.client.set_registered_model_alias("r", "candidate-cpu-int8", "4")
    link.client.delete_model_version("r", "4")


@pytest.fixture(scope="module")
def reader(client: Connection, artifacts: Path) -> SqliteReader:
    found = open_reader(artifacts / DATABASE_FILE, EXPERIMENT, artifacts.resolve() / ARTIFACT_FOLDER)
    assert found is not None, "this version of MLflow has another schema: compare it, then add it to KNOWN_SCHEMAS"
    return found


QUERIES = {
    "all": RunQuery(),
    "builds": RunQuery({KIND: "build"}),
    "two tags": RunQuery({KIND: "engine", ENGINE: "r/int8/cpu"}),
    "a quote": RunQuery({"quote": "it's 100%"}),
    "none": RunQuery({RECIPE: "R"}),
    "status": RunQuery({KIND: "build"}, status="FINISHED"),
    "since": RunQuery(since=101.0),
    "starting": RunQuery(starting={STORE_KEYS: "["}),
    "no id": RunQuery(run_ids=["0" * 32]),
}


@pytest.mark.parametrize("everywhere", [False, True])
@pytest.mark.parametrize("limit", [None, 2])
@pytest.mark.parametrize("name", QUERIES)
def test_searches(client: Connection, reader: SqliteReader, name: str, limit: int | None, everywhere: bool) -> None:
    found = list(reader.search(QUERIES[name], limit=limit, everywhere=everywhere))
    assert found == list(client.search(QUERIES[name], limit=limit, everywhere=everywhere))
    assert bool(found) == (name not in ("none", "no id"))


def test_one_run_and_its_files(client: Connection, reader: SqliteReader) -> None:
    run = next(client.search(QUERIES["two tags"]))
    assert reader.get_run(run.run_id) == client.get_run(run.run_id) == run
    assert list(reader.search(RunQuery(run_ids=[run.run_id]))) == [run]
    assert reader.read_text(run.run_id, "a/b.json") == client.read_text(run.run_id, "a/b.json") == "{}"
    for link in (client, reader):
        with pytest.raises(TrackingError, match=f"artifact none of run {run.run_id} cannot be read"):
            link.read_text(run.run_id, "none")
        with pytest.raises(TrackingError, match=f"run {'0' * 32} cannot be read: Run with id={'0' * 32} not found"):
            link.get_run("0" * 32)


def test_the_registry(client: Connection, reader: SqliteReader) -> None:
    def seen(link: Reader) -> list[object]:
        slots = [Slot("r", "cpu", p) for p in ("fp32", "fp16", "int8", "bf16")] + [Slot("no", "cpu", "fp32")]
        return [
            standings(link, slots), list_champions(link), list_champions(link, "r"), list_champions(link, "none"),
            versions_behind(link, "r", ["champion-cpu-fp32", "candidate-cpu-int8"]), versions_behind(link, "no", ["a"]),
            [link.find_version("r", str(v)) for v in range(1, 6)], link.find_model("of another"), link.experiment_tags(),
            link.experiment_id,
        ]  # fmt: skip

    assert seen(reader) == seen(client)
    assert len(list_champions(reader)) == 3


def test_what_the_reader_leaves_to_the_client(artifacts: Path, client: Connection, tmp_path: Path) -> None:
    root = artifacts.resolve() / ARTIFACT_FOLDER
    file = artifacts / DATABASE_FILE
    assert open_reader(file, "never made", root) is None
    assert open_reader(file, EXPERIMENT, tmp_path) is None, "the artifacts are elsewhere"
    assert open_reader(tmp_path / "none.db", EXPERIMENT, root) is None
    newer = tmp_path / "newer.db"
    newer.write_bytes(file.read_bytes())
    assert open_reader(newer, EXPERIMENT, root) is not None
    with sqlite3.connect(newer) as connection:
        connection.execute("UPDATE alembic_version SET version_num = 'later'")
    assert open_reader(newer, EXPERIMENT, root) is None
    newer.write_bytes(b"no database")
    assert open_reader(newer, EXPERIMENT, root) is None


def test_the_file_is_opened_read_only(reader: SqliteReader) -> None:
    with reader._reading("it") as connection, pytest.raises(sqlite3.OperationalError, match="readonly"):
        connection.execute("DELETE FROM runs")


def test_reading_does_not_import_mlflow(artifacts: Path, client: Connection) -> None:
    code = (
        "import sys; from pathlib import Path; from engineworks.tracking.runs import open_tracking\n"
        "tracking = open_tracking(Path(sys.argv[1])); runs = tracking.find_runs(kind='engine', limit=100)\n"
        "tracking.champions(); print(len(runs), 'mlflow' in sys.modules, 'sqlalchemy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(artifacts)], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["6", "False", "False"]
    assert len(open_tracking(artifacts).find_runs(kind="engine", limit=100)) == 6
