"""Creates a fresh SQLite database for MLflow once.

MLflow 3.17.2 creates its tables without a lock: of four processes that started together on a fresh file, all four
failed. A file that is not a database costs MLflow about ten seconds of retries.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable
from pathlib import Path

from engineworks.errors import TrackingError

WRITER_S = 20
"""Seconds that a reader waits for a writer; MLflow waits as long."""


def prepare_database(path: Path) -> None:
    """Create and migrate the database if it is missing. Hold `locked` around it. Raises `TrackingError`.

    MLflow's migrations run in memory, and a rename publishes the result: 0.7 s. On disk, hundreds of commits wait for
    the disk (1 to 6 s), and a kill leaves a database that cannot be opened.
    """
    if path.exists():
        _check_database(path)
        return
    partial = path.with_name(f".{path.name}.partial")
    partial.unlink(missing_ok=True)  # of a killed process: the lock's holder is alone
    _migrate_in_memory(partial)
    partial.rename(path)


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


def _check_database(path: Path) -> None:
    """Check once: MLflow tries a file that is not a database ten times, for a minute and a half."""
    try:
        with contextlib.closing(sqlite3.connect(path, timeout=WRITER_S)) as connection:
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except sqlite3.DatabaseError as error:
        raise TrackingError(
            f"the MLflow database {path} cannot be read: {error}", hint="move it away and a new one is made"
        ) from error
