"""The writer of MLflow's file writes exactly what MLflow's client writes, for the installed version of MLflow."""

from __future__ import annotations

import contextlib
import json
import re
import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engineworks.errors import TrackingError
from engineworks.tracking import sqlite
from engineworks.tracking.connection import Connection
from engineworks.tracking.file_connection import FileConnection
from engineworks.tracking.opening import DATABASE_FILE, connect
from engineworks.tracking.reader import RunQuery
from engineworks.tracking.records import DATASETS, KIND, Batch
from engineworks.tracking.sqlite import transaction
from engineworks.tracking.sqlite_reader import FOUND_BY, TAG_INDEX, _where

pytest.importorskip("mlflow")

EXPERIMENT = "engineworks"
DATA = [
    {"name": "images", "digest": "d1", "uri": "/data/a.npz", "role": "evaluation"},
    {"name": "images", "digest": "d2", "uri": "/data/b.npz", "role": "calibration"},
]


def opened(folder: Path) -> FileConnection:
    link = connect(folder, f"sqlite:///{folder / DATABASE_FILE}", EXPERIMENT)
    message = "this version of MLflow has another schema: compare it, then add it to KNOWN_SCHEMAS"
    assert isinstance(link, FileConnection), message
    return link


def by_client(link: Connection) -> Connection:
    """The same store by MLflow's client."""
    return Connection(link.open_client, link.experiment_id, link.uri, link.database)


def record(link: Connection, file: Path) -> None:
    """Two runs of everything: values given twice, series, shared data, a text and a file replaced."""
    link = replace(link, at=1000.5)
    for name in ("r/fp32/cpu", "r/int8/cpu"):
        run = link.create_run(name, {KIND: "engine", "quote": "it's ½"}, 999.25)
        metrics, series = {"cosine/out": -1.0, "large": 1e300}, {"sweep": {4: 1.5, 1: 2.5}}
        first = Batch(
            {"precision": name, "empty": ""}, metrics, {DATASETS: json.dumps(DATA)}, {"long.json": "{}"}, series
        )
        link.log(run, first, {"a/b.json": "½"}, {"engine/m.onnx": file})
        again = Batch(
            {"precision": name}, {"large": 1e299, "p50": 3.0}, {"quote": "no", DATASETS: json.dumps(DATA[:1])}, {}
        )
        replace(link, at=999.0).log(run, again, {"a/b.json": "new"}, {}, end=("FINISHED", 998.0))
        if name.endswith("int8/cpu"):
            link.end_run(run, "FAILED", started_at=2000.0)
    link.tag_experiment({"view": "1"})
    link.tag_experiment({"view": "2", "other": "3"})


TABLES = (
    "runs", "params", "metrics", "latest_metrics", "tags", "experiments", "experiment_tags", "datasets", "inputs",
    "input_tags", "workspaces",
)  # fmt: skip


def rows(folder: Path) -> dict[str, list[list[Any]]]:
    """Every row by table, with ids in the order of their making, and without the times of the experiments."""
    names: dict[str, str] = {}

    def plain(value: Any) -> Any:
        found = re.findall(r"[0-9a-f]{32}", value) if isinstance(value, str) else []
        for each in found:
            value = value.replace(each, names.setdefault(each, f"id {len(names)}"))
        return value.replace(str(folder), "FOLDER") if isinstance(value, str) else value

    with contextlib.closing(sqlite3.connect(folder / DATABASE_FILE)) as database:
        database.row_factory = sqlite3.Row
        tables = {}
        for table in TABLES:
            found = [dict(row) for row in database.execute(f"SELECT * FROM {table} ORDER BY rowid")]
            kept = [{k: v for k, v in row.items() if k not in ("creation_time", "last_update_time")} for row in found]
            tables[table] = [[plain(v) for _, v in sorted(row.items())] for row in kept if row.get("name") != "Default"]
    return {name: sorted(found, key=str) if name in ("metrics", "tags") else found for name, found in tables.items()}


def files(folder: Path) -> dict[str, bytes]:
    place = folder / "mlartifacts"
    return {
        re.sub(r"^\w{32}", "RUN", str(f.relative_to(place))): f.read_bytes() for f in place.rglob("*") if f.is_file()
    }


def test_every_row_and_file_is_that_of_the_client(tmp_path: Path) -> None:
    engine = tmp_path / "m.onnx"
    engine.write_bytes(b"weights")
    here, there = tmp_path / "file", tmp_path / "client"
    for folder in (here, there):
        folder.mkdir()
    record(opened(here), engine)
    record(by_client(opened(there)), engine)
    written = rows(here)
    assert written == rows(there)
    assert all(written.values())
    assert files(here) == files(there)
    assert {"a/b.json", "long.json", "engine/m.onnx"} == {path.partition("artifacts/")[2] for path in files(here)}


def test_a_run_that_is_gone_or_deleted_takes_nothing(tmp_path: Path) -> None:
    link = opened(tmp_path)
    run = link.create_run("r", {})
    link.client.delete_run(run)
    for wanted, run_id in (("it is deleted", run), ("Run with id=0 not found", "0")):
        with pytest.raises(TrackingError, match=f"run {run_id} cannot be written: {wanted}"):
            link.log(run_id, Batch({}, {"m": 1.0}, {}, {}), {}, {})
        with pytest.raises(TrackingError, match=f"run {run_id} cannot be written: {wanted}"):
            link.end_run(run_id, "FINISHED")


def test_a_record_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    link = opened(tmp_path)
    run = link.create_run("r", {})
    link.log(run, Batch({"a": "1"}, {}, {}, {}), {}, {})
    before = link.get_run(run)
    with pytest.raises(TrackingError, match="MLflow keeps the first value of a"):
        link.log(run, Batch({"a": "2", "b": "1"}, {"m": 1.0}, {"t": "1"}, {}), {}, {})
    with pytest.raises(TrackingError, match=f"run {run} cannot be written"):
        link.log(run, Batch({}, {"m": 1.0}, {DATASETS: json.dumps([DATA[0] | {"role": None}])}, {}), {}, {})
    assert link.get_run(run) == before


@pytest.mark.parametrize("name", FOUND_BY)
def test_a_search_reads_no_run_but_those_with_its_tag(tmp_path: Path, name: str) -> None:
    link = opened(tmp_path)
    where, values = _where(RunQuery({KIND: "engine", name: "x"}))
    with transaction(link.database[0] if link.database else tmp_path, "ro") as database:
        plan = database.execute(f"EXPLAIN QUERY PLAN SELECT r.* FROM runs r WHERE {' AND '.join(where)}", values)
        steps = [str(row["detail"]) for row in plan]
    assert any(TAG_INDEX in step for step in steps)
    assert not any(step.startswith("SCAN r") for step in steps)


def words(statements: str) -> list[list[str]]:
    """Their words, sorted: alembic writes constraints in any order, and tables in the order of its last copies."""
    return sorted(sorted(re.split(r"[\s,();\"]+", statement)) for statement in statements.split(";\n"))


def test_the_shipped_schema_is_what_the_migrations_make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If it fails: `make mlflow-schema`."""
    shipped = sqlite.shipped_schema()
    monkeypatch.setattr(sqlite, "SCHEMA_FILE", tmp_path / "schema.sql")
    sqlite.write_schema()
    assert words(shipped) == words((tmp_path / "schema.sql").read_text(encoding="utf-8"))


def test_another_release_of_mlflow_migrates_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "_mlflow_version", lambda: "3.99.0")
    assert sqlite.shipped_schema() == ""
