"""Creates MLflow's tables in PostgreSQL, one process at a time.

`SqlAlchemyStore` of MLflow 3.17.2 creates them without a lock: of several concurrent processes, most fail.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING

from engineworks.errors import TrackingError

if TYPE_CHECKING:
    import sqlalchemy

LOCK_ID = zlib.crc32(b"engineworks/mlflow")
"""The advisory lock for creating the tables; the server drops it when its holder's connection ends."""

LOCK_WAIT_S = 120
CONNECT_S = 10


def is_postgresql(uri: str) -> bool:
    return uri.partition("://")[0].partition("+")[0] == "postgresql"


def prepare_database(uri: str) -> None:
    """Create MLflow's tables in an empty database. A database with tables is left alone: MLflow checks its revision.

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
