"""An open connection to MLflow: writes and searches plain values, and converts MLflow's errors."""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from engineworks.errors import TrackingError
from engineworks.tracking.reader import ModelRecord, RunQuery, VersionRecord, quoted
from engineworks.tracking.records import DATASETS, RECIPE, Batch, RunSummary, Status, store_keys_of, summarized
from engineworks.tracking.sqlite_writer import within

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion, RegisteredModel
    from mlflow.tracking import MlflowClient

PAGE = 1000


@dataclass(frozen=True)
class Connection:
    """An open tracking store and the experiment of all runs. Thread-safe.

    Every method raises `TrackingError` where MLflow refuses or does not answer.
    """

    open_client: Callable[[], MlflowClient]
    """Returns one client; imports MLflow at its first call."""
    experiment_id: str
    uri: str = ""
    database: tuple[Path, int] | None = None
    """An SQLite file and its inode when it was opened: SQLite goes on writing to a deleted file."""
    at: float | None = None
    """Time of what is written, in seconds since the epoch; None: now. Set while waiting records are sent."""

    @property
    def client(self) -> MlflowClient:
        return self.open_client()

    @property
    def is_server(self) -> bool:
        return self.uri.startswith(("http:", "https:"))

    def check_database(self) -> None:
        """Raises `TrackingError` if the SQLite file was deleted or replaced since it was opened."""
        if self.database is None:
            return
        file, inode = self.database
        try:
            same = file.stat().st_ino == inode
        except OSError:
            same = False
        if not same:
            raise TrackingError(f"MLflow's database {file} was deleted or replaced since it was opened")

    def create_run(self, name: str, tags: Mapping[str, str], started_at: float | None = None) -> str:
        """Create a run with status RUNNING; returns its id."""
        whose = {"mlflow.user": user_name(), "mlflow.source.name": "engineworks", "mlflow.source.type": "LOCAL"}
        started_ms = round((self.now() if started_at is None else started_at) * 1000)
        with refusals(f"run {name} cannot be created"):
            return self._create(name, whose | dict(tags), started_ms)

    def _create(self, name: str, tags: Mapping[str, str], started_ms: int) -> str:
        run = self.client.create_run(self.experiment_id, start_time=started_ms, tags=dict(tags), run_name=name)
        return str(run.info.run_id)

    def log(
        self, run_id: str, batch: Batch, texts: Mapping[str, str], files: Mapping[str, Path],
        end: tuple[Status, float] | None = None,
    ) -> None:  # fmt: skip
        """Write files and texts first, then all params, metrics and tags in one call: no tag refers to a missing file.
        end: also end the run, with this status and start as `end_run` takes them.

        A rename publishes each file, so that readers see a complete file or none, also where an older one is read-only.
        """
        from mlflow.entities import Metric, Param, RunTag

        now = round(self.now() * 1000)
        with refusals(f"run {run_id} cannot be written"):
            self._log_artifacts(run_id, dict(texts) | dict(batch.texts), files)
            self.client.log_batch(
                run_id,
                metrics=[Metric(name, value, now, step) for name, step, value in batch.points()],
                params=[Param(name, value) for name, value in batch.params.items()],
                tags=[RunTag(name, value) for name, value in batch.tags.items()],
            )
            if datasets := batch.tags.get(DATASETS):
                self._log_datasets(run_id, json.loads(datasets))
        if end is not None:
            self.end_run(run_id, *end)

    def _log_datasets(self, run_id: str, datasets: list[dict[str, str]]) -> None:
        """Record data as inputs of the run, which MLflow shows in its column Dataset."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        inputs = [
            DatasetInput(
                Dataset(d["name"], d["digest"], "local", json.dumps({"uri": d["uri"]})),
                [InputTag("mlflow.data.context", d["role"])],
            )
            for d in datasets
        ]
        self.client.log_inputs(run_id, inputs)

    def _log_artifacts(self, run_id: str, texts: Mapping[str, str], files: Mapping[str, Path]) -> None:
        if not texts and not files:
            return
        with tempfile.TemporaryDirectory(prefix="engineworks-") as folder:
            for path, file in files.items():
                link = within(Path(folder, "files"), path)
                link.symlink_to(file.resolve(strict=True))
                self.client.log_artifact(run_id, str(link), _folder_of(path) or None)
            for path, text in texts.items():
                within(Path(folder, "texts"), path).write_text(text, encoding="utf-8", errors="backslashreplace")
            if texts:
                self.client.log_artifacts(run_id, str(Path(folder, "texts")))

    def end_run(self, run_id: str, status: Status, started_at: float = 0.0) -> None:
        """End the run. started_at: seconds since the epoch; the end is never earlier, even if the clock was set
        back."""
        with refusals(f"run {run_id} cannot be ended"):
            self.client.set_terminated(run_id, status, self._end_ms(started_at))

    def _end_ms(self, started_at: float) -> int:
        return round(max(self.now(), started_at) * 1000)

    def now(self) -> float:
        """Return the time of what is written, in seconds since the epoch."""
        return time.time() if self.at is None else self.at

    def get_run(self, run_id: str) -> RunSummary:
        with refusals(f"run {run_id} cannot be read"):
            return _summary(self.client.get_run(run_id))

    def experiment_tags(self) -> dict[str, str]:
        with refusals("the experiment cannot be read"):
            return dict(self.client.get_experiment(self.experiment_id).tags)

    def tag_experiment(self, tags: Mapping[str, str]) -> None:
        with refusals("the experiment cannot be written"):
            for name, value in tags.items():
                self.client.set_experiment_tag(self.experiment_id, name, value)

    def search(self, query: RunQuery, *, limit: int | None = None, everywhere: bool = False) -> Iterator[RunSummary]:
        """Yield runs that are not deleted, newest first; `everywhere` searches all experiments."""
        with refusals("runs cannot be searched"):
            experiments = self._experiment_ids() if everywhere else [self.experiment_id]
            token: str | None = None
            while limit is None or limit > 0:
                page = self.client.search_runs(
                    experiments,
                    query.to_mlflow(),
                    max_results=PAGE if limit is None else min(limit, PAGE),
                    order_by=["attributes.start_time DESC"],
                    page_token=token,
                )
                yield from map(_summary, page)
                limit = None if limit is None else limit - len(page)
                token = page.token
                if not token:
                    return

    def has_files(self, run_id: str, sizes: Mapping[str, int]) -> bool:
        """Whether the run's artifacts include all these paths with these sizes in bytes."""
        listed: dict[str, int | None] = {}
        with refusals(f"artifacts of run {run_id} cannot be listed"):
            for folder in sorted({_folder_of(path) for path in sizes}):
                listed |= {f.path: f.file_size for f in self.client.list_artifacts(run_id, folder or None)}
            return all(
                listed.get(path) == size or self._hides_namesake(run_id, path, listed) for path, size in sizes.items()
            )

    def _hides_namesake(self, run_id: str, path: str, listed: Mapping[str, int | None]) -> bool:
        """Over REST, a folder whose only file has its name, like `engine/engine`, is listed as empty: check the level
        above."""
        folder = _folder_of(path)
        if path in listed or PurePosixPath(folder).name != PurePosixPath(path).name:
            return False
        above = self.client.list_artifacts(run_id, _folder_of(folder) or None)
        return any(f.is_dir and f.path == folder for f in above)

    def read_text(self, run_id: str, path: str) -> str:
        with (
            refusals(f"artifact {path} of run {run_id} cannot be read"),
            tempfile.TemporaryDirectory(prefix="engineworks-") as folder,
        ):
            return Path(self.client.download_artifacts(run_id, path, folder)).read_text(encoding="utf-8")

    def download(self, run_id: str, path: str, folder: Path) -> Path:
        with refusals(f"artifact {path} of run {run_id} cannot be read"):
            return Path(self.client.download_artifacts(run_id, path, str(folder)))

    def find_model(self, name: str) -> ModelRecord | None:
        with refusals(f"registered model '{name}' cannot be read"), _or_none() as found:
            found.append(self.client.get_registered_model(name))
        return _model(found[0]) if found else None

    def find_version(self, model: str, version: str) -> VersionRecord | None:
        with refusals(f"version {version} of '{model}' cannot be read"), _or_none() as found:
            found.append(self.client.get_model_version(model, version))
        return _version(found[0]) if found else None

    def find_models(self, recipe: str | None) -> list[ModelRecord]:
        query = None if recipe is None else f"tags.`{RECIPE}` = {quoted(recipe)}"
        with refusals("registered models cannot be searched"):
            found = self.client.search_registered_models(query, max_results=PAGE)
            names = sorted(model.name for model in found if RECIPE in dict(model.tags))
        return [model for name in names if (model := self.find_model(name)) is not None]

    def keys_of_deleted(self, run_id: str) -> set[str]:
        """Return the store keys of a run that may be deleted; none where MLflow no longer has it."""
        with refusals(f"run {run_id} cannot be read"), _or_none() as found:
            found.append(self.client.get_run(run_id))
        return store_keys_of(found[0].data.tags) if found else set()

    def _experiment_ids(self) -> list[str]:
        return [str(experiment.experiment_id) for experiment in pages(self.client.search_experiments)]


def pages(search: Callable[..., Any], *query: str | None) -> Iterator[Any]:
    """Yield what a search of MLflow's client finds, from all its pages."""
    token: str | None = None
    while True:
        page = search(*query, max_results=PAGE, page_token=token)
        yield from page
        token = getattr(page, "token", None)
        if not token:
            return


@contextlib.contextmanager
def refusals(what: str, *more: type[Exception]) -> Iterator[None]:
    """Raise `TrackingError`: `what` failed, with the reason in one line. more: exceptions to treat like MLflow's."""
    try:
        yield
    except Exception as error:
        mlflow = sys.modules.get("mlflow.exceptions")  # imports nothing: without it MLflow raised nothing
        foreign = (OSError, sqlite3.Error, *more, *((mlflow.MlflowException,) if mlflow else ()))
        if not isinstance(error, foreign):
            raise
        raise TrackingError(f"{what}: {reason_of(error)}") from error


SQLALCHEMY_NOTE = "(raised as a result of Query-invoked autoflush"
"""How SQLAlchemy's message begins where a query had to write first: the cause follows in the next line."""


def reason_of(error: BaseException) -> str:
    """Return one line: the system's message where that is the cause (`Connection refused`), else the error's first
    line."""
    inner = error
    while deeper := inner.__cause__ or inner.__context__:
        inner = deeper
    if isinstance(inner, OSError) and inner.strerror:
        return f"{inner.strerror}: {inner.filename}" if inner.filename else inner.strerror
    lines = [line for line in str(error).strip().splitlines() if not line.startswith(SQLALCHEMY_NOTE)]
    return lines[0] if lines else type(error).__name__


def _folder_of(path: str) -> str:
    parent = PurePosixPath(path).parent
    return str(parent) if parent.parts else ""


def user_name() -> str:
    """Return the user name of this process."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return str(os.getuid())


@contextlib.contextmanager
def _or_none() -> Iterator[list[Any]]:
    """Give a list to fill; it stays empty where MLflow says that there is no such thing."""
    from mlflow.exceptions import MlflowException

    try:
        yield []
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise


def _model(model: RegisteredModel) -> ModelRecord:
    return ModelRecord(model.name, dict(model.tags), {alias: str(v) for alias, v in model.aliases.items()})


def _version(version: ModelVersion) -> VersionRecord:
    created = (version.creation_timestamp or 0) / 1000
    return VersionRecord(version.name, str(version.version), dict(version.tags), version.run_id or "", created)


def _summary(run: Run) -> RunSummary:
    info, data = run.info, run.data
    return summarized(
        info.run_id, info.run_name or "", info.status, info.start_time, info.end_time,
        dict(data.params), dict(data.metrics), dict(data.tags),
    )  # fmt: skip
