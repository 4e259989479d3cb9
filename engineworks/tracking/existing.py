"""Opens a record that exists and creates nothing: neither a database nor an experiment."""

from __future__ import annotations

import contextlib
import sqlite3

from engineworks.errors import TrackingError
from engineworks.tracking.connection import Connection, refusals
from engineworks.tracking.in_use import store_keys_in_use
from engineworks.tracking.opening import (
    EXPERIMENT,
    database_errors,
    is_server,
    prepare_environment,
    probe,
    sqlite_file,
    without_password,
)
from engineworks.tracking.records import RECORD_ID

ELSEWHERE = "run gc where the builds were made, with their ENGINEWORKS_ARTIFACTS and MLFLOW_TRACKING_URI"


class ExistingRecord:
    """A record that exists. Every method raises `TrackingError`.

    id: of the record for all time, '' if it is older than these ids. shown: its URI without password.
    """

    def __init__(self, link: Connection) -> None:
        self._link = link
        self.shown = without_password(link.uri)
        self.id = link.experiment_tags().get(RECORD_ID, "")

    def keys_in_use(self) -> set[str]:
        """Return the store keys that it refers to."""
        return store_keys_in_use(self._link)


def open_existing(uri: str) -> ExistingRecord:
    """Open the record at `uri`. Raises `TrackingError` where there is none, or it does not answer."""
    prepare_environment()
    from mlflow.tracking import MlflowClient

    shown = without_password(uri)
    none = TrackingError(f"there is no record of builds at {shown}, so nothing is known to be unused", hint=ELSEWHERE)
    with refusals(f"MLflow's store {shown} cannot be opened", sqlite3.Error, *database_errors(uri)):
        if is_server(uri):
            probe(uri)
        elif not _has_tables(uri):
            raise none
        client = MlflowClient(tracking_uri=uri)
        experiment = client.get_experiment_by_name(EXPERIMENT)
        if experiment is None:
            raise none
    return ExistingRecord(Connection(lambda: client, str(experiment.experiment_id), uri))


def _has_tables(uri: str) -> bool:
    """Whether the database exists and is MLflow's; MLflow would create both."""
    file = sqlite_file(uri)
    if file is None:
        import sqlalchemy

        probe(uri)
        engine = sqlalchemy.create_engine(uri, poolclass=sqlalchemy.pool.NullPool)
        return bool(sqlalchemy.inspect(engine).has_table("runs"))
    if not file.is_file():
        return False
    with contextlib.closing(sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True)) as database:
        query = "SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name = 'runs'"
        return bool(database.execute(query).fetchone()[0])
