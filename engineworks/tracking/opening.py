"""Opens the connection: without telemetry, creates a fresh database once, and does not wait long for a dead server.

`mlflow-skinny`, `sqlalchemy` and `alembic` suffice; the web page and the server need the full mlflow.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import secrets
import socket
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from engineworks.errors import TrackingError
from engineworks.host.lock import locked
from engineworks.tracking.connection import Connection, reason_of, refusals
from engineworks.tracking.file_connection import FileConnection
from engineworks.tracking.records import RECORD_ID
from engineworks.tracking.sqlite import prepare_database
from engineworks.tracking.sqlite_writer import open_writer

if TYPE_CHECKING:
    import sqlalchemy
    from mlflow.entities import Experiment
    from mlflow.tracking import MlflowClient

EXPERIMENT = "engineworks"
DATABASE_FILE = "mlflow.db"
ARTIFACT_FOLDER = "mlartifacts"
PROBE_S = 5
PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}

ENVIRONMENT = {
    "DO_NOT_TRACK": "true",  # MLflow does not understand `1`
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
DEFAULTS = {
    "MLFLOW_LOGGING_LEVEL": "CRITICAL",  # MLflow also raises what it logs as an error
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "4",  # half a minute for a restarting server; MLflow's 7 take four minutes
}


def prepare_environment() -> None:
    """Disable telemetry and printing. Call it before the first import of mlflow, here or in a child process."""
    os.environ.update(ENVIRONMENT)
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    logging.getLogger("mlflow").setLevel(os.environ["MLFLOW_LOGGING_LEVEL"].upper())  # if mlflow was imported before


def connect(artifacts: Path, uri: str, experiment: str) -> Connection:
    """Open the store at `uri`: a server or a database. Creates a missing SQLite file.

    An SQLite file of a known schema is opened without MLflow. Raises `TrackingError` within about ten seconds where
    nothing answers.
    """
    prepare_environment()
    shown, database = without_password(uri), sqlite_file(uri)
    root = None if is_server(uri) else artifacts.resolve() / ARTIFACT_FOLDER
    open_client = functools.cache(lambda: _open_client(uri, database))
    tags = {RECORD_ID: secrets.token_hex(16)}
    if database is not None and root is not None:
        with refusals(f"MLflow's store {shown} cannot be opened"), _locked_beside(database):
            prepare_database(database)
            writer = open_writer(database, experiment, root, tags)
            opened = (database, database.stat().st_ino)
        if writer is not None:
            return FileConnection(open_client, writer.experiment_id, uri, opened, file=writer)
    with refusals(f"MLflow's store {shown} cannot be opened", *database_errors(uri)):
        if database is None:
            probe(uri)
            if is_postgresql(uri):
                prepare_postgresql(uri)
        number = _open_experiment(open_client(), experiment, root, shown, tags)
        return Connection(open_client, number, uri, opened if database is not None else None)


def _open_client(uri: str, database: Path | None) -> MlflowClient:
    """Import MLflow and open its client. MLflow 3.17 keeps one engine per URI and process, whose pooled connections go
    on with a file that was deleted: they are closed."""
    try:
        from mlflow.tracking import MlflowClient
    except ImportError as error:
        raise TrackingError(
            f"MLflow cannot be imported: {error}", hint="pip install mlflow-skinny sqlalchemy alembic"
        ) from error
    if database is None:
        return MlflowClient(tracking_uri=uri)
    with _locked_beside(database):
        client = MlflowClient(tracking_uri=uri)
        client._tracking_client.store.engine.dispose()
    return client


def _locked_beside(database: Path) -> contextlib.AbstractContextManager[None]:
    """Hold the lock of those who make or migrate the database."""
    return locked(database.with_name(database.name + ".lock"))


def sqlite_file(uri: str) -> Path | None:
    """Return the file of an SQLite URI, None for any other."""
    kind, _, path = uri.partition(":///")
    return Path(path).absolute() if kind.partition("+")[0] == "sqlite" and path not in ("", ":memory:") else None


def is_server(uri: str) -> bool:
    return uri.startswith(("http:", "https:"))


def database_errors(uri: str) -> tuple[type[Exception], ...]:
    """Return exceptions of opening a database, besides MLflow's own; a server needs neither library."""
    if is_server(uri):
        return ()
    from alembic.util import CommandError
    from sqlalchemy.exc import SQLAlchemyError

    return SQLAlchemyError, CommandError


def _open_experiment(
    client: MlflowClient, name: str, root: Path | None, shown: str, tags: Mapping[str, str]
) -> str:  # fmt: skip
    """Return the experiment's id. A new one gets these tags, and keeps artifacts under `root`, or where the server
    decides if that is None."""
    from mlflow.exceptions import MlflowException

    experiment: Experiment | None = client.get_experiment_by_name(name)
    if experiment is None:
        if root is not None:
            root.mkdir(parents=True, exist_ok=True)
        try:
            location = root.as_uri() if root else None
            return str(client.create_experiment(name, artifact_location=location, tags=dict(tags)))
        except MlflowException as error:
            experiment = client.get_experiment_by_name(name)
            if error.error_code != "RESOURCE_ALREADY_EXISTS" or experiment is None:  # else another process won
                raise
    if experiment.lifecycle_stage != "active":
        raise TrackingError(
            f"experiment {name!r} in {shown} is deleted",
            hint=f"bring it back: mlflow experiments restore --experiment-id {experiment.experiment_id}",
        )
    location = urlsplit(experiment.artifact_location)
    if root is not None and location.scheme == "file" and experiment.artifact_location != root.as_uri():
        _check_moved(experiment.artifact_location, root, shown)
    return str(experiment.experiment_id)


def _check_moved(location: str, root: Path, shown: str) -> None:
    """Check for a moved database: MLflow stores an absolute folder and would silently write into the old one."""
    folder = Path(unquote(urlsplit(location).path))
    if not folder.is_dir():
        raise TrackingError(
            f"{shown} was made where its artifacts are in {folder}, which does not exist here",
            hint=f"link that path to {root}, or move the database away and a new one is made",
        )


def probe(uri: str) -> None:
    """Try once for a few seconds, because MLflow itself retries for minutes. Raises `TrackingError`."""
    prepare_environment()
    from mlflow.exceptions import MlflowException

    shown = without_password(uri)
    address = urlsplit(uri)
    try:
        if is_server(uri):
            from mlflow.utils.credentials import get_default_host_creds
            from mlflow.utils.rest_utils import http_request  # respects proxies, certificates, credentials

            request: Callable[..., object] = http_request
            credentials: Callable[[str], object] = get_default_host_creds
            request(credentials(uri), "/health", "GET", max_retries=0, timeout=PROBE_S, raise_on_status=False)
        elif address.hostname:
            port = address.port or PORTS.get(address.scheme.partition("+")[0])
            if port:
                socket.create_connection((address.hostname, port), timeout=PROBE_S).close()
    except (MlflowException, OSError, ValueError) as error:
        raise TrackingError(
            f"MLflow does not answer at {shown}: {reason_of(error)}",
            hint="start it, or unset MLFLOW_TRACKING_URI to use the SQLite file under artifacts",
        ) from error


def without_password(uri: str) -> str:
    scheme, separator, rest = uri.partition("://")
    credentials, at, place = rest.rpartition("@")
    return f"{scheme}{separator}{credentials.partition(':')[0]}{at}{place}"


LOCK_ID = zlib.crc32(b"engineworks/mlflow")
"""The advisory lock for creating the tables; the server drops it when its holder's connection ends."""

LOCK_WAIT_S = 120
CONNECT_S = 10


def is_postgresql(uri: str) -> bool:
    return uri.partition("://")[0].partition("+")[0] == "postgresql"


def prepare_postgresql(uri: str) -> None:
    """Create MLflow's tables in an empty database, one process at a time: `SqlAlchemyStore` of MLflow 3.17.2 takes no
    lock, and most of several concurrent processes fail. A database with tables is left alone: MLflow checks its
    revision.

    Raises `TrackingError` where the driver is not installed, and `SQLAlchemyError` where the database refuses.
    """
    import sqlalchemy

    try:
        engine = sqlalchemy.create_engine(
            uri, poolclass=sqlalchemy.pool.NullPool, connect_args={"connect_timeout": CONNECT_S}
        )
    except ImportError as error:
        raise TrackingError(
            f"MLflow's database needs a driver that is not installed: {error}",
            hint="pip install 'engineworks[postgres]', and say postgresql+psycopg2:// in MLFLOW_TRACKING_URI",
        ) from None
    with engine.connect() as holder:
        holder.execute(sqlalchemy.text(f"SET lock_timeout = '{LOCK_WAIT_S}s'"))
        holder.execute(sqlalchemy.text("SELECT pg_advisory_lock(:id)"), {"id": LOCK_ID})
        _make_tables(engine)


def _make_tables(engine: sqlalchemy.Engine) -> None:
    from mlflow.store.db.utils import _all_tables_exist, _initialize_tables

    exist: Callable[[sqlalchemy.Engine], bool] = _all_tables_exist  # MLflow's own check on first use
    initialize: Callable[[sqlalchemy.Engine], None] = _initialize_tables
    if not exist(engine):
        initialize(engine)
