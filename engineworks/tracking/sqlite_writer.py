"""Writes runs into MLflow's own SQLite file without MLflow's client, which takes 30 times as long.

The client opens a session, and loads the run, for each kind of value; here a record is one transaction. Only for the
schemas that `sqlite_reader` knows; the tests compare every row with what MLflow's client writes.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
import time
import uuid
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from engineworks.errors import TrackingError
from engineworks.host.atomic_write import write_atomically
from engineworks.tracking.records import DATASETS, Batch, Status
from engineworks.tracking.sqlite import transaction
from engineworks.tracking.sqlite_reader import WORKSPACE, SqliteReader, is_known, make_index, open_reader

RUN_NAME, USER, CONTEXT = "mlflow.runName", "mlflow.user", "mlflow.data.context"
"""Tags that MLflow itself reads."""

WRITE = "BEGIN IMMEDIATE"
"""Wait for other writers now: a transaction that has read cannot wait any more."""


def open_writer(file: Path, experiment: str, root: Path, tags: Mapping[str, str]) -> SqliteWriter | None:
    """Return a writer of the experiment, None where MLflow's client must write. Creates a missing experiment, with
    these tags and its artifacts under `root`. Raises `sqlite3.Error` where the file cannot be written."""
    reader = open_reader(file, experiment, root)
    if reader is None and _create_experiment(file, experiment, root, tags):
        reader = open_reader(file, experiment, root)
    if reader is None:
        return None
    with transaction(file, "rw", WRITE) as connection:
        make_index(connection)
    return SqliteWriter(reader.file, reader.experiment_id)


def _create_experiment(file: Path, name: str, root: Path, tags: Mapping[str, str]) -> bool:
    """Create the experiment; False where it exists, or the schema is another."""
    try:
        with transaction(file, "rw", WRITE) as connection:
            known = "SELECT 1 FROM experiments WHERE name = ? AND workspace = ?"
            if not is_known(connection) or connection.execute(known, (name, WORKSPACE)).fetchone():
                return False
            root.mkdir(parents=True, exist_ok=True)
            now = round(time.time() * 1000)
            added = connection.execute(
                "INSERT INTO experiments (name, artifact_location, lifecycle_stage, creation_time, last_update_time, "
                "workspace) VALUES (?, ?, 'active', ?, ?, ?)", (name, root.as_uri(), now, now, WORKSPACE),
            )  # fmt: skip
            _set_tags(connection, "experiment_tags", "experiment_id", added.lastrowid, tags)
            return True
    except sqlite3.DatabaseError:
        return False  # for MLflow to say


@dataclass(frozen=True)
class SqliteWriter(SqliteReader):
    """Reads and writes one experiment. Thread-safe.

    Every writing method raises `TrackingError` for a run that does not exist or is deleted, and `sqlite3.Error`. Times
    are milliseconds since the epoch.
    """

    mode = "rw"

    def _writing(self) -> AbstractContextManager[sqlite3.Connection]:
        return transaction(self.file, self.mode, WRITE)

    def create_run(self, name: str, tags: Mapping[str, str], started_ms: int) -> str:
        run_id = uuid.uuid4().hex
        with self._writing() as connection:
            (location,) = connection.execute(
                "SELECT artifact_location FROM experiments WHERE experiment_id = ?", (int(self.experiment_id),)
            ).fetchone()
            connection.execute(
                "INSERT INTO runs (run_uuid, name, source_type, source_name, entry_point_name, user_id, status, "
                "start_time, source_version, lifecycle_stage, artifact_uri, experiment_id) "
                "VALUES (?, ?, 'UNKNOWN', '', '', ?, 'RUNNING', ?, '', 'active', ?, ?)",
                (run_id, name, tags[USER], started_ms, f"{location.rstrip('/')}/{run_id}/artifacts",
                 int(self.experiment_id)),
            )  # fmt: skip
            _set_tags(connection, "tags", "run_uuid", run_id, {**tags, RUN_NAME: name})
        return run_id

    def log(self, run_id: str, batch: Batch, now_ms: int, end: tuple[Status, int] | None = None) -> None:
        """Write all params, metrics, tags and dataset inputs, or nothing. end: the run's last status, and when."""
        with self._writing() as connection:
            _check_active(connection, run_id)
            _add_params(connection, run_id, batch.params)
            points = [(name, value, now_ms, step, run_id) for name, step, value in batch.points()]
            connection.executemany(
                "INSERT OR IGNORE INTO metrics (key, value, timestamp, step, run_uuid, is_nan) "
                "VALUES (?, ?, ?, ?, ?, 0)", points,
            )  # fmt: skip
            connection.executemany(
                "INSERT INTO latest_metrics (key, value, timestamp, step, run_uuid, is_nan) VALUES (?, ?, ?, ?, ?, 0) "
                "ON CONFLICT (key, run_uuid) DO UPDATE SET value = excluded.value, timestamp = excluded.timestamp, "
                "step = excluded.step, is_nan = 0 "
                "WHERE (excluded.step, excluded.timestamp, excluded.value) > (step, timestamp, value)", points,
            )  # fmt: skip
            _set_tags(connection, "tags", "run_uuid", run_id, batch.tags)
            for dataset in json.loads(batch.tags.get(DATASETS, "[]")):
                self._add_input(connection, run_id, dataset)
            if end is not None:
                connection.execute("UPDATE runs SET status = ?, end_time = ? WHERE run_uuid = ?", (*end, run_id))

    def end_run(self, run_id: str, status: Status, ended_ms: int) -> None:
        self.log(run_id, Batch({}, {}, {}, {}), ended_ms, (status, ended_ms))

    def tag_experiment(self, tags: Mapping[str, str]) -> None:
        with self._writing() as connection:
            _set_tags(connection, "experiment_tags", "experiment_id", int(self.experiment_id), tags)

    def _add_input(self, connection: sqlite3.Connection, run_id: str, dataset: Mapping[str, str]) -> None:
        """Add a dataset as input of the run; one that is known by name and digest is shared."""
        known = "SELECT dataset_uuid FROM datasets WHERE experiment_id = ? AND name = ? AND digest = ?"
        place = (int(self.experiment_id), dataset["name"], dataset["digest"])
        row = connection.execute(known, place).fetchone()
        dataset_id = row[0] if row else uuid.uuid4().hex
        if row is None:
            connection.execute(
                "INSERT INTO datasets (dataset_uuid, experiment_id, name, digest, dataset_source_type, dataset_source) "
                "VALUES (?, ?, ?, ?, 'local', ?)", (dataset_id, *place, json.dumps({"uri": dataset["uri"]})),
            )  # fmt: skip
        input_id = uuid.uuid4().hex
        added = connection.execute(
            "INSERT OR IGNORE INTO inputs (input_uuid, source_type, source_id, destination_type, destination_id) "
            "VALUES (?, 'DATASET', ?, 'RUN', ?)", (input_id, dataset_id, run_id),
        )  # fmt: skip
        if added.rowcount:
            connection.execute("INSERT INTO input_tags VALUES (?, ?, ?)", (input_id, CONTEXT, dataset["role"]))


def _check_active(connection: sqlite3.Connection, run_id: str) -> None:
    row = connection.execute("SELECT lifecycle_stage FROM runs WHERE run_uuid = ?", (run_id,)).fetchone()
    if row is None:
        raise TrackingError(f"run {run_id} cannot be written: Run with id={run_id} not found")
    if row[0] != "active":
        raise TrackingError(f"run {run_id} cannot be written: it is deleted")


def _add_params(connection: sqlite3.Connection, run_id: str, params: Mapping[str, str]) -> None:
    known = dict(connection.execute("SELECT key, value FROM params WHERE run_uuid = ?", (run_id,)))
    changed = sorted(name for name, value in params.items() if known.get(name, value) != value)
    if changed:
        raise TrackingError(f"run {run_id} cannot be written: MLflow keeps the first value of {', '.join(changed)}")
    rows = [(name, value, run_id) for name, value in params.items() if name not in known]
    connection.executemany("INSERT INTO params (key, value, run_uuid) VALUES (?, ?, ?)", rows)


def _set_tags(
    connection: sqlite3.Connection, table: str, column: str, owner: str | int | None, tags: Mapping[str, str]
) -> None:
    connection.executemany(
        f"INSERT INTO {table} (key, value, {column}) VALUES (?, ?, ?) "
        f"ON CONFLICT (key, {column}) DO UPDATE SET value = excluded.value",
        [(name, value, owner) for name, value in tags.items()],
    )


def write_artifacts(folder: Path, texts: Mapping[str, str], files: Mapping[str, Path]) -> None:
    """Write texts and copies of files at their paths below the folder; a rename publishes each. Raises `OSError`."""
    for path, file in files.items():
        target = within(folder, path)
        partial = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}")
        try:
            shutil.copyfile(file, partial)
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)
    for path, text in texts.items():
        write_atomically(within(folder, path), text.encode(errors="backslashreplace"))


def within(root: Path, path: str) -> Path:
    """Return the path below `root`, with its folder made. Raises `TrackingError` for a path that leaves it."""
    parts = PurePosixPath(path).parts
    if not parts or ".." in parts or path.startswith("/"):
        raise TrackingError(f"artifact path {path!r} does not stay within its run")
    target = root.joinpath(*parts)
    target.parent.mkdir(parents=True, exist_ok=True)
    return target
