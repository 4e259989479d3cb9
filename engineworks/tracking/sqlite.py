"""Creates a fresh SQLite database for MLflow once: of the shipped schema, else by MLflow's migrations.

`make mlflow-schema` rewrites mlflow_schema.sql after an upgrade of MLflow. MLflow 3.17.2 creates its tables without a
lock: of four processes that started together on a fresh file, all four failed. A file that is not a database costs
MLflow about ten seconds of retries.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import sqlite3
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal
from urllib.parse import quote

from engineworks.errors import TrackingError

SCHEMA_FILE = Path(__file__).with_name("mlflow_schema.sql")
WRITER_S = 20
"""Seconds that a reader waits for a writer; MLflow waits as long."""


def prepare_database(path: Path) -> None:
    """Create and migrate the database if it is missing. Hold `locked` around it. Raises `TrackingError`.

    A rename publishes the result. Without the schema of the installed MLflow its migrations run in memory, which takes
    3 s with its import. On disk, hundreds of commits wait for the disk (1 to 6 s), and a kill leaves a database that
    cannot be opened.
    """
    if path.exists():
        _check_database(path)
        return
    partial = path.with_name(f".{path.name}.partial")
    partial.unlink(missing_ok=True)  # of a killed process: the lock's holder is alone
    if schema := shipped_schema():
        with contextlib.closing(sqlite3.connect(partial)) as connection:
            connection.executescript(f"BEGIN;\n{schema}\nCOMMIT;")
    else:
        _migrate_in_memory(partial)
    partial.rename(path)


def shipped_schema() -> str:
    """Return the statements that make an empty database of the installed MLflow, '' where another version wrote
    them."""
    text = SCHEMA_FILE.read_text(encoding="utf-8")
    written, installed = text.split(maxsplit=3)[2], _mlflow_version()
    return text if installed.split(".")[:2] == written.split(".")[:2] else ""  # a fix of a release alters no table


def write_schema() -> None:
    """Let the installed MLflow migrate an empty database, and write its statements where `shipped_schema` reads
    them."""
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder, "mlflow.db")
        _migrate_in_memory(made)
        with contextlib.closing(sqlite3.connect(made)) as connection:
            lines = [line for line in connection.iterdump() if line not in ("BEGIN TRANSACTION;", "COMMIT;")]
    SCHEMA_FILE.write_text("\n".join([f"-- MLflow {_mlflow_version()}", *lines, ""]), encoding="utf-8")


def _mlflow_version() -> str:
    for name in ("mlflow-skinny", "mlflow"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(name)
    return ""


def _migrate_in_memory(target: Path) -> None:
    import sqlalchemy
    from mlflow.store.db.utils import _initialize_tables

    engine = sqlalchemy.create_engine("sqlite://", poolclass=sqlalchemy.pool.StaticPool)
    initialize: Callable[[sqlalchemy.Engine], None] = _initialize_tables  # MLflow's own call on an empty database
    initialize(engine)
    with contextlib.closing(engine.raw_connection()) as memory, contextlib.closing(sqlite3.connect(target)) as file:
        connection = memory.driver_connection
        assert isinstance(connection, sqlite3.Connection)
        connection.backup(file)
    engine.dispose()


def _connection(file: Path, mode: Literal["ro", "rw"]) -> sqlite3.Connection:
    """Return this thread's connection to the file, which must exist; no transaction is open. Raises `sqlite3.Error`.

    The last one stays open, for SQLite reads MLflow's 218 statements of the schema anew in every other. A file that
    was replaced is opened again.
    """
    key = (file, mode, file.stat().st_ino if file.exists() else 0)
    if getattr(_last, "key", None) != key:
        _last.key = None
        opened = sqlite3.connect(
            f"file:{quote(str(file))}?mode={mode}", uri=True, timeout=WRITER_S, isolation_level=None
        )
        opened.row_factory = sqlite3.Row
        opened.execute("PRAGMA foreign_keys = ON")
        _last.connection, _last.key = opened, key
    found: sqlite3.Connection = _last.connection
    return found


_last = threading.local()


@contextlib.contextmanager
def transaction(file: Path, mode: Literal["ro", "rw"], begin: str = "BEGIN") -> Iterator[sqlite3.Connection]:
    """Commit at the end, or nothing after an error; all statements see one state of the file."""
    opened = _connection(file, mode)
    try:
        opened.execute(begin)
        yield opened
        opened.commit()
    except BaseException:
        _last.key = None
        opened.close()  # rolls back
        raise


def _check_database(path: Path) -> None:
    """Check once: MLflow tries a file that is not a database ten times, for a minute and a half."""
    try:
        with contextlib.closing(sqlite3.connect(path, timeout=WRITER_S)) as connection:
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except sqlite3.DatabaseError as error:
        raise TrackingError(
            f"the MLflow database {path} cannot be read: {error}", hint="move it away and a new one is made"
        ) from error
