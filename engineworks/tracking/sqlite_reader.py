"""Reads MLflow's own SQLite file without importing MLflow, which takes 2 s of processor time.

Read-only and without a copy: each call sees what MLflow sees. Only schemas that the tests compare with MLflow's client
are read; for any other, and wherever the client would refuse the store, `open_reader` returns None.
"""

from __future__ import annotations

import contextlib
import math
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal
from urllib.parse import unquote, urlsplit

from engineworks.errors import TrackingError
from engineworks.tracking.reader import ModelRecord, RunQuery, VersionRecord
from engineworks.tracking.records import (
    BUILD_KEY,
    CONDITIONS,
    ENGINE,
    ENGINE_DIGEST,
    KIND,
    PARENT,
    RECIPE,
    RECORD,
    RunSummary,
    summarized,
)
from engineworks.tracking.sqlite import transaction

KNOWN_SCHEMAS = frozenset({"dc11669786a5"})
"""Values of `alembic_version`: MLflow 3.17."""

TAG_INDEX = "engineworks_tags"
"""An index of ours on the tags that runs are found by; without it a search reads all runs, 0.1 s of 13,000."""

FOUND_BY = (PARENT, ENGINE, RECIPE, BUILD_KEY, ENGINE_DIGEST, RECORD, CONDITIONS)
WORKSPACE = "default"
DELETED_STAGE = "Deleted_Internal"
AT_ONCE = 500
"""Maximum number of ids in one statement; SQLite before 3.32 takes 999 values."""


def open_reader(file: Path, experiment: str, root: Path) -> SqliteReader | None:
    """Return a reader of the experiment, None where MLflow's client must be asked.

    root: folder of the experiment's artifacts. An unknown schema, a missing or deleted experiment, a database that was
    moved away from its artifacts, or a file that SQLite cannot read are the client's to judge.
    """
    if not file.is_file():
        return None
    try:
        with transaction(file, "ro") as connection:
            known = is_known(connection)
            found = connection.execute(
                "SELECT experiment_id, lifecycle_stage, artifact_location FROM experiments "
                "WHERE name = ? AND workspace = ?", (experiment, WORKSPACE),
            ).fetchone()  # fmt: skip
    except sqlite3.Error:
        return None
    if not known or found is None or found["lifecycle_stage"] != "active":
        return None
    location = str(found["artifact_location"])
    if urlsplit(location).scheme == "file" and location != root.as_uri():
        return None
    return SqliteReader(file, str(found["experiment_id"]))


def is_known(connection: sqlite3.Connection) -> bool:
    """Whether the tests compare this database's schema with MLflow's client. Raises `sqlite3.Error`."""
    schemas = {str(row[0]) for row in connection.execute("SELECT version_num FROM alembic_version")}
    return bool(schemas) and schemas <= KNOWN_SCHEMAS


def make_index(connection: sqlite3.Connection) -> None:
    """Make `TAG_INDEX`; MLflow's own searches and migrations go on as without it."""
    keys = " OR ".join(f"key = {_text(key)}" for key in FOUND_BY)
    connection.execute(f"CREATE INDEX IF NOT EXISTS {TAG_INDEX} ON tags (key, value) WHERE {keys}")


@dataclass(frozen=True)
class SqliteReader:
    """A `Reader` of one experiment in MLflow's file. Thread-safe."""

    file: Path
    experiment_id: str
    mode: ClassVar[Literal["ro", "rw"]] = "ro"

    def experiment_tags(self) -> dict[str, str]:
        with self._reading("the experiment") as connection:
            statement = "SELECT key, value FROM experiment_tags WHERE experiment_id = ?"
            return dict(connection.execute(statement, (int(self.experiment_id),)))

    def get_run(self, run_id: str) -> RunSummary:
        with self._reading(f"run {run_id}") as connection:
            rows = connection.execute("SELECT * FROM runs WHERE run_uuid = ?", (run_id,)).fetchall()
            found = _summaries(connection, rows)
        if not found:
            raise TrackingError(f"run {run_id} cannot be read: Run with id={run_id} not found")
        return found[0]

    def search(self, query: RunQuery, *, limit: int | None = None, everywhere: bool = False) -> Iterator[RunSummary]:
        where, values = _where(query)
        if not everywhere:
            where.append("r.experiment_id = ?")
            values.append(int(self.experiment_id))
        else:
            where.append("r.experiment_id IN (SELECT experiment_id FROM experiments WHERE lifecycle_stage = 'active')")
        statement = (
            f"SELECT r.* FROM runs r WHERE {' AND '.join(where)} AND r.lifecycle_stage = 'active' "
            "ORDER BY r.start_time IS NULL, r.start_time DESC, r.run_uuid LIMIT ?"
        )
        with self._reading("runs") as connection:
            rows = connection.execute(statement, (*values, -1 if limit is None else limit)).fetchall()
            found = _summaries(connection, rows)
        yield from found

    def artifacts(self, run_id: str) -> Path | None:
        """Return the folder of the run's artifacts, None where they are not in a local folder."""
        with self._reading(f"run {run_id}") as connection:
            row = connection.execute("SELECT artifact_uri FROM runs WHERE run_uuid = ?", (run_id,)).fetchone()
        place = urlsplit(str(row[0] if row else ""))
        return Path(unquote(place.path)) if place.scheme == "file" and not place.netloc else None

    def read_text(self, run_id: str, path: str) -> str:
        folder = self.artifacts(run_id)
        if folder is None:
            raise TrackingError(f"artifact {path} of run {run_id} cannot be read: it is not on this host")
        try:
            return (folder / path).read_text(encoding="utf-8")
        except OSError as error:
            raise TrackingError(f"artifact {path} of run {run_id} cannot be read: {error.strerror}") from error

    def find_model(self, name: str) -> ModelRecord | None:
        with self._reading(f"registered model '{name}'") as connection:
            return _model(connection, name)

    def find_models(self, recipe: str | None) -> list[ModelRecord]:
        with self._reading("registered models") as connection:
            names = connection.execute(
                "SELECT name FROM registered_model_tags WHERE key = ? AND (? IS NULL OR value = ?) AND workspace = ? "
                "ORDER BY name", (RECIPE, recipe, recipe, WORKSPACE),
            ).fetchall()  # fmt: skip
            return [model for row in names if (model := _model(connection, row[0])) is not None]

    def find_version(self, model: str, version: str) -> VersionRecord | None:
        place = (model, int(version), WORKSPACE)
        with self._reading(f"version {version} of '{model}'") as connection:
            row = connection.execute(
                "SELECT * FROM model_versions WHERE name = ? AND version = ? AND workspace = ?", place
            ).fetchone()
            if row is None or row["current_stage"] == DELETED_STAGE:
                return None
            tags = connection.execute(
                "SELECT key, value FROM model_version_tags WHERE name = ? AND version = ? AND workspace = ?", place
            )
            return VersionRecord(
                model, str(row["version"]), {t["key"]: t["value"] for t in tags}, row["run_id"] or "",
                (row["creation_time"] or 0) / 1000,
            )  # fmt: skip

    @contextlib.contextmanager
    def _reading(self, what: str) -> Iterator[sqlite3.Connection]:
        try:
            with transaction(self.file, self.mode) as connection:
                yield connection
        except sqlite3.Error as error:
            raise TrackingError(f"{what} cannot be read in {self.file}: {error}") from error


def _where(query: RunQuery) -> tuple[list[str], list[Any]]:
    """Return conditions on `runs r`, and their values.

    Names of tags are no parameters, so that SQLite finds `TAG_INDEX`. A kind is asked of the runs that the rest names,
    for half of all runs have it.
    """
    tagged = "EXISTS (SELECT 1 FROM tags t WHERE t.run_uuid = r.run_uuid AND t.key = {} AND {})"
    named = "r.run_uuid IN (SELECT run_uuid FROM tags WHERE key = {} AND value = ?)"
    where = [(tagged if key == KIND else named).format(_text(key), "t.value = ?") for key in query.tags]
    where += [tagged.format(_text(key), "substr(t.value, 1, ?) = ?") for key in query.starting]
    values: list[Any] = list(query.tags.values())
    values += [value for text in query.starting.values() for value in (len(text), text)]
    if query.status is not None:
        where.append("r.status = ?")
        values.append(query.status)
    if query.since is not None:
        where.append("r.start_time >= ?")
        values.append(round(query.since * 1000))
    if query.run_ids is not None:
        where.append(f"r.run_uuid IN ({_marks(query.run_ids)})")
        values += query.run_ids
    return where or ["1"], values


def _summaries(connection: sqlite3.Connection, rows: Sequence[sqlite3.Row]) -> list[RunSummary]:
    ids = [row["run_uuid"] for row in rows]
    tags = _values(connection, "tags", "value", ids)
    params = _values(connection, "params", "value", ids)
    metrics = _values(connection, "latest_metrics", "value, is_nan", ids, lambda v, is_nan: math.nan if is_nan else v)
    return [
        summarized(
            row["run_uuid"], row["name"] or tags.get(row["run_uuid"], {}).get("mlflow.runName", ""), row["status"],
            row["start_time"], row["end_time"], params.get(row["run_uuid"], {}), metrics.get(row["run_uuid"], {}),
            tags.get(row["run_uuid"], {}),
        )
        for row in rows
    ]  # fmt: skip


def _values(
    connection: sqlite3.Connection, table: str, columns: str, ids: Sequence[str],
    made: Callable[..., Any] = lambda value: value,
) -> dict[str, dict[str, Any]]:  # fmt: skip
    """Return value by key, by run."""
    found: dict[str, dict[str, Any]] = {}
    for at in range(0, len(ids), AT_ONCE):
        some = ids[at : at + AT_ONCE]
        statement = f"SELECT run_uuid, key, {columns} FROM {table} WHERE run_uuid IN ({_marks(some)})"
        for run, key, *values in connection.execute(statement, some):
            found.setdefault(run, {})[key] = made(*values)
    return found


def _model(connection: sqlite3.Connection, name: str) -> ModelRecord | None:
    place = (name, WORKSPACE)
    if connection.execute("SELECT 1 FROM registered_models WHERE name = ? AND workspace = ?", place).fetchone() is None:
        return None
    tags = connection.execute("SELECT key, value FROM registered_model_tags WHERE name = ? AND workspace = ?", place)
    aliases = connection.execute(
        "SELECT alias, version FROM registered_model_aliases WHERE name = ? AND workspace = ?", place
    )
    return ModelRecord(name, dict(tags), {alias: str(version) for alias, version in aliases})


def _text(value: str) -> str:
    """Return it as a literal of SQL."""
    return "'" + value.replace("'", "''") + "'"


def _marks(values: Iterable[object]) -> str:
    return ", ".join("?" for _ in values)
