"""A build is a parent run, each of its engines a child run. A build that was killed goes on in the runs it has."""

from __future__ import annotations

import contextlib
import json
import shlex
import threading
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Literal

from engineworks.errors import EngineworksError, Interrupted, TrackingError
from engineworks.tracking.champion_list import RegisteredChampion, list_champions
from engineworks.tracking.connection import PARENT, Connection
from engineworks.tracking.opening import DATABASE_FILE, connect, is_server, sqlite_file
from engineworks.tracking.owner import current_owner, read_owner
from engineworks.tracking.pages import (
    ALL_ENGINES,
    EXPERIMENT_KIND,
    LOCAL,
    TRAINING,
    VIEW_TAG,
    Pages,
    engines_view,
    experiment_note,
    recipe_view,
    view_key,
)
from engineworks.tracking.records import (
    BUILD_KEY,
    CONDITIONS,
    ENGINE,
    ENGINE_DIGEST,
    ENGINE_RUN,
    ERROR,
    KIND,
    NOTE,
    OWNER,
    RECIPE,
    RECORD,
    RESUMES,
    STORE_KEYS,
    Batch,
    EngineRecord,
    RegisteredVersion,
    RunSummary,
    pack_batch,
    store_keys_of,
)
from engineworks.tracking.registry import Registry
from engineworks.tracking.sqlite import locked

EndStatus = Literal["FINISHED", "FAILED", "KILLED"]


def open_tracking(artifacts: Path, uri: str | None = None, experiment: str = "engineworks") -> Tracking:
    """The tracking store at `uri`, by default an SQLite file under `artifacts`.

    Nothing is imported or opened before the first use (or `prestart`); that raises `TrackingError` where nothing
    answers. The same arguments give the same object, so that one part of a process can prestart it for another; after
    a failure they give a new one.
    """
    database = artifacts.resolve() / DATABASE_FILE
    place = (artifacts.resolve(), uri or f"sqlite:///{database}", experiment)
    with _lock:
        known = _opened.get(place)
        if known is None or known.failed:
            known = _opened[place] = Tracking(*place)
        return known


_opened: dict[tuple[Path, str, str], Tracking] = {}
_lock = threading.Lock()


class Tracking:
    """The record of all builds. Threads may share it; every method but `ui_hint` raises `TrackingError`."""

    def __init__(self, artifacts: Path, uri: str, experiment: str) -> None:
        self.uri = uri
        self._artifacts = artifacts
        self._experiment = experiment
        self._lock = threading.Lock()
        self._opening: Future[Connection] | None = None

    @property
    def failed(self) -> bool:
        """Whether it was tried to open it, in vain."""
        opening = self._opening
        return opening is not None and opening.done() and opening.exception() is not None

    def prestart(self) -> None:
        """Begin to import MLflow and open the store in a thread; returns at once, an error waits for the first use.

        It takes about 2 s of processor time and the interpreter's lock with it, so it costs nothing only while this
        process waits for something else. Do not fork meanwhile (a child started by `subprocess` is no fork).
        """
        with self._lock:
            if self._opening is None:
                pool = ThreadPoolExecutor(1, thread_name_prefix="mlflow")
                self._opening = pool.submit(connect, self._artifacts, self.uri, self._experiment)
                pool.shutdown(wait=False)

    def start_build(
        self,
        recipe: str,
        build_key: str,
        tags: Mapping[str, str],
        params: Mapping[str, str],
        store_keys: Iterable[str] = (),
        mark: str = "",
    ) -> BuildRun:
        """The parent run of a build: a new one, or that of the same key whose process died while it was running.

        store_keys: keys of the whole plan, so that gc does not take them from under a running build. mark: an id by
        which `open_waiting` finds the run.
        """
        link = self._connect()
        with locked(self._artifacts / f"{DATABASE_FILE}.lock"):  # two processes may want the same dead run
            dead = self._dead_builds(link, build_key)
            owner = {OWNER: current_owner().to_text()} | ({RECORD: mark} if mark else {})
            if dead:
                old = dead[0]
                run = BuildRun(link, old.run_id, recipe, old.params, resumed=True, started_at=old.started_at)
                owner[RESUMES] = str(int(old.tags.get(RESUMES, "0")) + 1)
                link.log(old.run_id, Batch({}, {}, owner, {}), {}, {})
            else:
                identity, now = {KIND: "build", RECIPE: recipe, BUILD_KEY: build_key}, time.time()
                run_id = link.create_run(recipe, identity | owner, now)
                run = BuildRun(link, run_id, recipe, {}, resumed=False, started_at=now)
        with contextlib.ExitStack() as ending:
            ending.push(run)  # Ctrl-C comes at any time
            for other in dead[1:]:
                link.end_run(other.run_id, "KILLED", other.started_at)
            run.log(params=params, tags=tags, store_keys=store_keys)
            ending.pop_all()
        return run

    def attach_build(self, run_id: str) -> BuildRun:
        """The parent run that another process started, to record engines in it from here."""
        link = self._connect()
        run = link.get_run(run_id)
        if run.tags.get(KIND) != "build":
            raise TrackingError(f"run {run_id} is not the parent run of a build")
        return BuildRun(link, run_id, run.recipe, run.params, resumed=True, started_at=run.started_at)

    def open_waiting(
        self, mark: str, run_id: str, recipe: str, build_key: str, owner: str, started_at: float
    ) -> BuildRun:
        """The run of a build whose records waited: `run_id` if MLflow has it, else that with this mark, else a new one
        with this start (seconds since the epoch) and owner."""
        link = self._connect()
        queries = ([f"attributes.run_id = {_quote(run_id)}"] if run_id else []) + [_query({RECORD: mark})]
        found = next((run for query in queries for run in link.search(query, limit=1)), None)
        if found is not None:
            return BuildRun(link, found.run_id, recipe, found.params, resumed=True, started_at=found.started_at)
        tags = {KIND: "build", RECIPE: recipe, BUILD_KEY: build_key, OWNER: owner, RECORD: mark}
        run_id = link.create_run(recipe, tags, started_at)
        return BuildRun(link, run_id, recipe, {}, resumed=True, started_at=started_at)

    def check(self) -> None:
        """Raise `TrackingError` unless MLflow answers now."""
        next(self._connect().search(_query({KIND: "build"}), limit=1), None)

    def find_runs(
        self,
        *,
        recipe: str | None = None,
        build_key: str | None = None,
        engine: str | None = None,
        parent_run_id: str | None = None,
        kind: Literal["build", "engine", "night"] | None = None,
        conditions: str | None = None,
        limit: int = 20,
    ) -> list[RunSummary]:
        """Runs that have all of what is given, newest first."""
        wanted = {RECIPE: recipe, BUILD_KEY: build_key, ENGINE: engine, PARENT: parent_run_id, KIND: kind}
        wanted |= {CONDITIONS: conditions}
        query = _query({name: value for name, value in wanted.items() if value is not None})
        return list(self._connect().search(query, limit=limit))

    def record_night(self, metrics: Mapping[str, float], tags: Mapping[str, str], texts: Mapping[str, str]) -> str:
        """One run for a whole night, above its builds' own: figures and pages of its summary; returns its id."""
        link = self._connect()
        run_id = link.create_run("night", {KIND: "night"})
        link.log(run_id, pack_batch({}, metrics, tags), texts, {})
        link.end_run(run_id, "FINISHED")
        return run_id

    def last_night_text(self, path: str) -> str | None:
        """A text of the newest night on record; None before the first. Nothing is opened where nothing can be."""
        nights = self.find_runs(kind="night", limit=5) if self.exists() else []
        newest = next((run for run in nights if run.status == "FINISHED"), None)
        return self.read_text(newest.run_id, path) if newest else None

    def get_run(self, run_id: str) -> RunSummary:
        return self._connect().get_run(run_id)

    def read_text(self, run_id: str, path: str) -> str:
        """A text that was recorded with a run."""
        return self._connect().read_text(run_id, path)

    def exists(self) -> bool:
        """Whether anything can have been recorded: False for a database file that is not there. Imports nothing."""
        file = sqlite_file(self.uri)
        return file is None or file.is_file()

    def versions_behind(self, model: str, aliases: Iterable[str]) -> dict[str, RegisteredVersion]:
        """By alias: the versions of the registered model that these aliases name; those that name none are left out."""
        return self._connect().versions_behind(model, aliases)

    def champions(self) -> list[RegisteredChampion]:
        """Every champion of every registered model of ours."""
        return list_champions(self._connect())

    def download(self, run_id: str, path: str, folder: Path) -> Path:
        """A run's artifact, or folder of artifacts, copied into `folder`; returns where it is."""
        return self._connect().download(run_id, path, folder)

    def digests_in_use(self) -> set[str]:
        """The store keys that any run refers to, of any experiment; deleted runs and experiments hold nothing."""
        runs = self._connect().search(f"tags.`{STORE_KEYS}` LIKE '[%'", everywhere=True)
        return {key for run in runs for key in store_keys_of(run.tags)}

    def registry(self) -> Registry:
        """The model registry of this store. Releases on one host share a lock; other hosts may use the same server."""
        file = sqlite_file(self.uri)
        lock = (file or self._artifacts / DATABASE_FILE).with_suffix(".registry.lock")
        return Registry(self._connect(), lock, shared=file is None)

    def pages(self) -> Pages:
        """Addresses of MLflow's pages: of the server, or of what `ui_hint` starts."""
        return Pages(self.uri.rstrip("/") if is_server(self.uri) else LOCAL, self._connect().experiment_id)

    def save_views(self, recipe: str, metrics: Iterable[str]) -> None:
        """Columns for MLflow's table of runs: a saved view of all engines and one of the recipe's, with these metrics
        besides the usual; and the experiment's description, which names them. Only what differs is written."""
        link = self._connect()
        known = link.experiment_tags()
        views = {VIEW_TAG + ALL_ENGINES: engines_view(), VIEW_TAG + view_key(recipe): recipe_view(recipe, metrics)}
        names = {json.loads(v)["name"]: k.removeprefix(VIEW_TAG) for k, v in sorted((known | views).items())
                 if k == VIEW_TAG + ALL_ENGINES or k.startswith(f"{VIEW_TAG}recipe-")}  # fmt: skip
        views |= {NOTE: experiment_note(self.pages(), names), EXPERIMENT_KIND: known.get(EXPERIMENT_KIND, TRAINING)}
        link.tag_experiment({name: text for name, text in views.items() if known.get(name) != text})

    def ui_hint(self, port: int = 5000) -> str:
        """The one command that opens MLflow's page on this store (it needs all of mlflow), or its address."""
        if is_server(self.uri):
            return self.uri
        file = sqlite_file(self.uri)
        uri = shlex.quote(f"sqlite:///{file}" if file else self.uri)
        quiet = "DO_NOT_TRACK=true MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false"  # jobs: 2.5 GB of processes for nothing
        return f"{quiet} mlflow ui --backend-store-uri {uri} --port {port}"

    def _connect(self) -> Connection:
        self.prestart()
        assert self._opening is not None
        return self._opening.result()

    def _dead_builds(self, link: Connection, build_key: str) -> list[RunSummary]:
        query = _query({BUILD_KEY: build_key, KIND: "build"}) + " AND attributes.status = 'RUNNING'"
        owners = [(run, read_owner(run.tags.get(OWNER, ""))) for run in link.search(query)]
        return [run for run, owner in owners if owner is not None and owner.is_dead()]


@dataclass
class _Child:
    run_id: str
    running: bool
    params: Mapping[str, str] = field(default_factory=dict)
    started_at: float = 0.0


class BuildRun:
    """The parent run of one build. Threads may record engines at once, each engine from one of them.

    As a context manager it ends the run whatever happens: KILLED when interrupted, FAILED at any other error, and
    FINISHED where `finish` was not called.
    """

    def __init__(
        self,
        link: Connection,
        run_id: str,
        recipe: str,
        params: Mapping[str, str],
        *,
        resumed: bool,
        started_at: float = 0.0,
    ) -> None:
        self._started_at = started_at
        self.run_id = run_id
        self.recipe = recipe
        self.resumed = resumed
        self._link = link
        self._params = dict(params)
        self._lock = threading.Lock()
        self._children: dict[str, _Child] | None = None if resumed else {}
        self._ended = False

    def write_as_of(self, at: float) -> None:
        """What is written from now on happened at `at`, seconds since the epoch."""
        self._link = replace(self._link, at=at)

    def log(
        self,
        *,
        params: Mapping[str, str] | None = None,
        metrics: Mapping[str, float] | None = None,
        tags: Mapping[str, str] | None = None,
        texts: Mapping[str, str] | None = None,
        store_keys: Iterable[str] = (),
    ) -> None:
        """Add to the parent run."""
        batch = pack_batch(params or {}, metrics or {}, tags or {}, store_keys=store_keys, known_params=self._params)
        self._link.log(self.run_id, batch, texts or {}, {})
        self._params |= batch.params

    def record_engine(self, record: EngineRecord) -> str:
        """Record one engine, all at once; returns its run id. An engine recorded again goes into the run it has."""
        child = self._open_child(record)
        files = dict(record.files)
        tags = dict(record.tags)
        if record.engine_digest:
            holder = self._holder_of(record.engine_digest, files)
            files = {} if holder else files
            tags |= {ENGINE_DIGEST: record.engine_digest}
            tags |= {ENGINE_RUN: holder or child.run_id} if record.files else {}
        batch = pack_batch(
            record.params, record.metrics, tags,
            store_keys=record.store_keys, known_params=child.params, series=record.series,
        )  # fmt: skip
        self._link.log(child.run_id, batch, record.texts, files)
        self._link.end_run(child.run_id, record.status, child.started_at)
        child.running = False
        child.params = {**child.params, **batch.params}
        return child.run_id

    def finish(
        self,
        status: EndStatus = "FINISHED",
        metrics: Mapping[str, float] | None = None,
        tags: Mapping[str, str] | None = None,
        texts: Mapping[str, str] | None = None,
    ) -> None:
        """End the run. Engines whose record was cut short end as KILLED."""
        if metrics or tags or texts:
            self.log(metrics=metrics, tags=tags, texts=texts)
        for child in (self._children or {}).values():
            if child.running:
                self._link.end_run(child.run_id, "KILLED", child.started_at)
        self._link.end_run(self.run_id, status, self._started_at)
        self._ended = True

    def fail(self, message: str, log: str = "") -> None:
        """End the run as FAILED: `message` becomes a tag, `log` the artifact `log.txt`."""
        self.finish("FAILED", tags={ERROR: message}, texts={"log.txt": log} if log else None)

    def __enter__(self) -> BuildRun:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._ended:
            return
        if error is None:
            self.finish()
            return
        try:
            if not isinstance(error, Exception) or isinstance(error, Interrupted):  # Ctrl-C, or Prefect cancels it
                self.finish("KILLED")
            else:
                self.fail(str(error) or type(error).__name__, str(getattr(error, "log", "")))
        except EngineworksError as second:  # what ended the build is what the user must read
            error.add_note(f"and the end of run {self.run_id} could not be recorded: {second}")

    def _open_child(self, record: EngineRecord) -> _Child:
        with self._lock:
            if self._children is None:
                self._children = self._known_children()
            known = self._children.get(record.id)
        if known is not None:
            return known
        recipe, _, variant = record.id.partition("/")
        precision, _, target = variant.partition("/")
        tags = {PARENT: self.run_id, KIND: "engine", ENGINE: record.id, RECIPE: recipe}
        tags |= {"engineworks.precision": precision, "engineworks.target": target}
        started_at = self._link.now() if record.started_at is None else record.started_at
        child = _Child(self._link.create_run(record.id, tags, started_at), running=True, started_at=started_at)
        self._children[record.id] = child
        return child

    def _known_children(self) -> dict[str, _Child]:
        runs = self._link.search(_query({PARENT: self.run_id, KIND: "engine"}))
        return {
            run.engine: _Child(run.run_id, run.status == "RUNNING", run.params, run.started_at)
            for run in runs
            if run.engine
        }

    def _holder_of(self, digest: str, files: Mapping[str, Path]) -> str | None:
        """The run, not deleted, whose artifacts really hold these files."""
        if not files:
            return None
        try:
            sizes = {path: file.stat().st_size for path, file in files.items()}
        except OSError as error:
            raise TrackingError(f"engine file {error.filename} can not be read: {error.strerror}") from error
        for run in self._link.search(_query({ENGINE_DIGEST: digest}), limit=20):
            if run.tags.get(ENGINE_RUN) == run.run_id and self._link.has_files(run.run_id, sizes):
                return run.run_id
        return None


def _query(tags: Mapping[str, str]) -> str:
    """A search for runs with all these tags."""
    return " AND ".join(f"tags.`{name}` = {_quote(value)}" for name, value in tags.items())


def _quote(value: str) -> str:
    mark = '"' if "'" in value else "'"
    if mark in value:
        raise TrackingError(f"MLflow can not search for {value!r}: it holds both kinds of quotes")
    return f"{mark}{value}{mark}"
