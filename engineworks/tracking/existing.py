"""Opens a record that exists and creates nothing: neither a database nor an experiment."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from typing import TYPE_CHECKING

from engineworks.errors import TrackingError
from engineworks.tracking.aliases import HISTORY, listed_versions
from engineworks.tracking.connection import Connection, pages, refusals
from engineworks.tracking.opening import (
    EXPERIMENT,
    database_errors,
    is_server,
    prepare_environment,
    probe,
    sqlite_file,
    without_password,
)
from engineworks.tracking.reader import RunQuery
from engineworks.tracking.records import ENGINE_BUILD_KEY, RECIPE, RECORD_ID, RUN, STORE_KEYS, store_keys_of

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion, RegisteredModel


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


def store_keys_in_use(link: Connection) -> set[str]:
    """Return the store keys that runs of any experiment refer to, and versions that an alias or a list of champions
    names, even if their runs are deleted. Other deleted runs do not count. Raises `TrackingError`."""
    with_keys = link.search(RunQuery(starting={STORE_KEYS: "["}), everywhere=True)
    runs = {run.run_id: store_keys_of(run.tags) for run in with_keys}
    keys = {key for of_run in runs.values() for key in of_run}
    with refusals("registered models cannot be read"):
        for version in _versions_in_use(link):
            tags = dict(version.tags)
            keys |= store_keys_of(tags)
            if ENGINE_BUILD_KEY in tags:
                keys.add(tags[ENGINE_BUILD_KEY])
            run_id = tags.get(RUN) or version.run_id
            if run_id and run_id not in runs:
                keys |= link.keys_of_deleted(run_id)
    return keys


def _versions_in_use(link: Connection) -> Iterator[ModelVersion]:
    for model in _models(link):
        listed = (text for tag, text in model.tags.items() if tag.startswith(HISTORY))
        wanted = {version for text in listed for version in listed_versions(text) or ()}
        wanted |= {int(version) for version in model.aliases.values()}
        for version in pages(link.client.search_model_versions, f"name = '{model.name}'"):
            if int(version.version) in wanted:
                yield version


def _models(link: Connection) -> Iterator[RegisteredModel]:
    """Yield our registered models with their aliases, which a search leaves out."""
    for model in pages(link.client.search_registered_models):
        if RECIPE in dict(model.tags):
            yield link.client.get_registered_model(model.name)
