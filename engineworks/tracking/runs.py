"""A build is a parent run, each of its engines a child run. A killed build continues in its existing runs."""

from __future__ import annotations

import contextlib
import json
import secrets
import shlex
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from engineworks.errors import TrackingError
from engineworks.host.collector import collect_apart
from engineworks.host.lock import locked
from engineworks.tracking.aliases import Slot
from engineworks.tracking.build_run import BuildRun
from engineworks.tracking.champion_list import RegisteredChampion, Standing, list_champions, standings, versions_behind
from engineworks.tracking.connection import Connection
from engineworks.tracking.opening import (
    ARTIFACT_FOLDER,
    DATABASE_FILE,
    EXPERIMENT,
    connect,
    is_server,
    sqlite_file,
    without_password,
)
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
from engineworks.tracking.reader import Reader, RunQuery
from engineworks.tracking.records import (
    BUILD_KEY,
    CONDITIONS,
    ENGINE,
    KIND,
    NOTE,
    OWNER,
    PARENT,
    RECIPE,
    RECORD,
    RECORD_ID,
    RESUMES,
    VERDICT,
    Batch,
    RegisteredVersion,
    RunSummary,
    pack_batch,
)
from engineworks.tracking.sqlite_reader import SqliteReader, open_reader

if TYPE_CHECKING:
    from engineworks.tracking.registry import Registry

MOST_LATER = 1000
"""Maximum number of later runs that `finished_builds` reads."""

NAMED_AT_ONCE = 100
"""Maximum number of ids in one search: MLflow parses every query in Python."""


def open_tracking(artifacts: Path, uri: str | None = None, experiment: str = EXPERIMENT) -> Tracking:
    """Return the tracking store at `uri`, by default an SQLite file under `artifacts`.

    Imports and opens nothing before the first use (or `prestart`), which raises `TrackingError` where nothing answers.
    The same arguments return the same object, so that one part of a process can prestart it for another; after a
    failure, a new one.
    """
    place = (artifacts.resolve(), uri or default_uri(artifacts), experiment)
    with _lock:
        known = _opened.get(place)
        if known is None or known.failed:
            known = _opened[place] = Tracking(*place)
        return known


def default_uri(artifacts: Path) -> str:
    """Return the URI of the SQLite file under `artifacts`."""
    return f"sqlite:///{artifacts.resolve() / DATABASE_FILE}"


_opened: dict[tuple[Path, str, str], Tracking] = {}
_lock = threading.Lock()


class Tracking:
    """The record of all builds. Thread-safe. Every method but `ui_hint` raises `TrackingError`."""

    def __init__(self, artifacts: Path, uri: str, experiment: str) -> None:
        self.uri = uri
        self._artifacts = artifacts
        self._experiment = experiment
        self._lock = threading.Lock()
        self._opening: Future[Connection] | None = None

    @property
    def failed(self) -> bool:
        """Whether opening it failed."""
        opening = self._opening
        return opening is not None and opening.done() and opening.exception() is not None

    def prestart(self) -> None:
        """Open the store in a thread; returns at once, and the first use raises any error.

        Where MLflow must be imported this takes about 2 s of processor time with the interpreter's lock, so it is free
        only while this process waits for something else. Do not fork meanwhile (a child started by `subprocess` is not
        a fork).
        """
        with self._lock:
            if self._opening is None:
                collect_apart()  # both the thread and its starter parse
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
        """Return the parent run of a build: a new one, or that of the same key whose process died before its end.

        store_keys: keys of the whole plan, which gc must keep while the build runs. mark: an id by which `open_waiting`
        finds the run.
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
                run_id = link.create_run(_run_name(recipe, now), identity | owner, now)
                run = BuildRun(link, run_id, recipe, {}, resumed=False, started_at=now)
        with contextlib.ExitStack() as ending:
            ending.push(run)  # Ctrl-C may come at any time
            for other in dead[1:]:
                link.end_run(other.run_id, "KILLED", other.started_at)
            run.log(params=params, tags=tags, store_keys=store_keys)
            ending.pop_all()
        return run

    def open_waiting(
        self, mark: str, run_id: str, recipe: str, build_key: str, owner: str, started_at: float
    ) -> BuildRun:
        """Return the run of a build whose records waited: `run_id` if MLflow has it, else the run with this mark, else
        a new one. started_at (seconds since the epoch) and owner are a new run's."""
        link = self._connect()
        queries = [*([RunQuery(run_ids=[run_id])] if run_id else []), RunQuery({RECORD: mark})]
        known = next((run for query in queries for run in link.search(query, limit=1)), None)
        if known is not None:
            return BuildRun(link, known.run_id, recipe, known.params, resumed=True, started_at=known.started_at)
        tags = {KIND: "build", RECIPE: recipe, BUILD_KEY: build_key, OWNER: owner, RECORD: mark}
        run_id = link.create_run(_run_name(recipe, started_at), tags, started_at)
        return BuildRun(link, run_id, recipe, {}, resumed=True, started_at=started_at)

    def check(self) -> None:
        """Raise `TrackingError` unless MLflow answers now."""
        next(self._connect().search(RunQuery({KIND: "build"}), limit=1), None)

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
        """Return runs that match all given arguments, newest first."""
        wanted = {RECIPE: recipe, BUILD_KEY: build_key, ENGINE: engine, PARENT: parent_run_id, KIND: kind}
        wanted |= {CONDITIONS: conditions}
        query = RunQuery({name: value for name, value in wanted.items() if value is not None})
        return list(self._reader().search(query, limit=limit))

    def finished_builds(self, run_ids: Sequence[str], since: float) -> dict[tuple[str, str], str]:
        """Return the newest finished build by recipe and build key, of those named or started after `since` (seconds
        since the epoch).

        It needs a few searches; one per recipe takes MLflow seconds. Returns nothing if too many builds ran since then.
        """
        link = self._reader()
        kinds = RunQuery({KIND: "build"}, "FINISHED"), RunQuery({KIND: "build", VERDICT: "fail"}, "FAILED")
        later = [run for q in kinds for run in link.search(replace(q, since=since), limit=MOST_LATER + 1)]
        if len(later) > MOST_LATER:
            return {}
        named: list[RunSummary] = []
        missing = sorted(set(run_ids) - {run.run_id for run in later})
        for at in range(0, len(missing), NAMED_AT_ONCE):
            some = missing[at : at + NAMED_AT_ONCE]
            named += [run for q in kinds for run in link.search(replace(q, run_ids=some))]
        in_order = sorted((*named, *later), key=lambda run: run.started_at)
        return {(run.recipe, run.build_key): run.run_id for run in in_order if run.build_key}

    def record_night(self, metrics: Mapping[str, float], tags: Mapping[str, str], texts: Mapping[str, str]) -> str:
        """Record one run for a nightly run, above its builds' runs: metrics and pages of its summary. Returns its
        id."""
        link = self._connect()
        run_id = link.create_run(_run_name("night", time.time()), {KIND: "night"})
        link.log(run_id, pack_batch({}, metrics, tags), texts, {})
        link.end_run(run_id, "FINISHED")
        return run_id

    def last_night_text(self, path: str) -> str | None:
        """Return a text of the newest recorded nightly run; None before the first. Opens nothing where nothing
        exists."""
        nights = self.find_runs(kind="night", limit=5) if self.exists() else []
        newest = next((run for run in nights if run.status == "FINISHED"), None)
        return self.read_text(newest.run_id, path) if newest else None

    def get_run(self, run_id: str) -> RunSummary:
        return self._reader().get_run(run_id)

    def read_text(self, run_id: str, path: str) -> str:
        """Return a text recorded with a run."""
        link = self._reader()
        if isinstance(link, SqliteReader) and link.artifacts(run_id) is None:  # on another host
            link = self._connect()
        return link.read_text(run_id, path)

    def add_text(self, run_id: str, path: str, text: str) -> None:
        """Write a text next to what the run recorded; a text of the same path is replaced."""
        self._connect().log(run_id, Batch({}, {}, {}, {}), {path: text}, {})

    def exists(self) -> bool:
        """Whether anything may be recorded: False for a missing database file. Imports nothing."""
        file = sqlite_file(self.uri)
        return file is None or file.is_file()

    def versions_behind(self, model: str, aliases: Iterable[str]) -> dict[str, RegisteredVersion]:
        """Return the registered model's versions by alias, without aliases that name none."""
        return versions_behind(self._reader(), model, aliases)

    def standings(self, slots: Iterable[Slot]) -> dict[Slot, Standing]:
        """Return each slot's recorded champions, and what the present one lacks."""
        return standings(self._reader(), slots)

    def champions(self, recipe: str | None = None) -> list[RegisteredChampion]:
        """Return every champion that Engineworks registered, or this recipe's; missing ones too."""
        return list_champions(self._reader(), recipe)

    def download(self, run_id: str, path: str, folder: Path) -> Path:
        """Copy a run's artifact, or folder of artifacts, into `folder`; returns its path."""
        return self._connect().download(run_id, path, folder)

    @property
    def shown(self) -> str:
        """The URI without password."""
        return without_password(self.uri)

    def record_id(self) -> str:
        """Return the id of this record for all time; gives one to a record of an earlier version."""
        link = self._connect()
        if RECORD_ID not in link.experiment_tags():
            link.tag_experiment({RECORD_ID: secrets.token_hex(16)})
        return link.experiment_tags()[RECORD_ID]

    def registry(self) -> Registry:
        """Return this store's model registry. Releases on one host share a lock; other hosts may use the same
        server."""
        from engineworks.tracking.registry import Registry

        file = sqlite_file(self.uri)
        lock = (file or self._artifacts / DATABASE_FILE).with_suffix(".registry.lock")
        return Registry(self._connect(), lock, shared=file is None)

    @property
    def has_pages(self) -> bool:
        """Whether a server shows MLflow's pages; those of a file need one to be started, see `ui_hint`."""
        return is_server(self.uri)

    def pages(self) -> Pages:
        """Return addresses of MLflow's pages: of the server, or of the one that `ui_hint` starts."""
        return Pages(self.uri.rstrip("/") if is_server(self.uri) else LOCAL, self._reader().experiment_id)

    def save_views(self, recipe: str, metrics: Iterable[str]) -> None:
        """Save columns for MLflow's table of runs: a view of all engines and a view of the recipe's with these
        additional metrics. Also write the experiment's description, which lists them. Writes only differences."""
        link = self._connect()
        known = link.experiment_tags()
        views = {VIEW_TAG + ALL_ENGINES: engines_view(), VIEW_TAG + view_key(recipe): recipe_view(recipe, metrics)}
        names = {json.loads(v)["name"]: k.removeprefix(VIEW_TAG) for k, v in sorted((known | views).items())
                 if k == VIEW_TAG + ALL_ENGINES or k.startswith(f"{VIEW_TAG}recipe-")}  # fmt: skip
        views |= {NOTE: experiment_note(self.pages(), names), EXPERIMENT_KIND: known.get(EXPERIMENT_KIND, TRAINING)}
        link.tag_experiment({name: text for name, text in views.items() if known.get(name) != text})

    def ui_hint(self, port: int = 5000) -> str:
        """Return the command that opens MLflow's page on this store (it needs the full mlflow), or its address."""
        if is_server(self.uri):
            return self.uri
        file = sqlite_file(self.uri)
        uri = shlex.quote(f"sqlite:///{file}" if file else self.uri)
        quiet = "DO_NOT_TRACK=true MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false"  # jobs: 2.5 GB of useless processes
        return f"{quiet} mlflow ui --backend-store-uri {uri} --port {port}"

    def _reader(self) -> Reader:
        """Return the fastest way to read: MLflow's client once it is open or opening, else its file where that is an
        SQLite file of a known schema."""
        with self._lock:
            opening, file = self._opening, sqlite_file(self.uri)
        if opening is None and file is not None:
            reader = open_reader(file, self._experiment, self._artifacts.resolve() / ARTIFACT_FOLDER)
            if reader is not None:
                return reader
        return self._connect()

    def _connect(self) -> Connection:
        """Return the connection; a new one where the database was deleted since it was opened."""
        self.prestart()
        opening = self._opening
        assert opening is not None
        link = opening.result()
        try:
            link.check_database()
        except TrackingError:
            with self._lock:
                if self._opening is opening:
                    self._opening = None
            return self._connect()
        return link

    def _dead_builds(self, link: Connection, build_key: str) -> list[RunSummary]:
        query = RunQuery({BUILD_KEY: build_key, KIND: "build"}, status="RUNNING")
        owners = [(run, read_owner(run.tags.get(OWNER, ""))) for run in link.search(query)]
        return [run for run, owner in owners if owner is not None and owner.is_dead()]


def _run_name(recipe: str, started_at: float) -> str:
    """'digits 2026-11-30 14:05', in UTC."""
    return f"{recipe} {time.strftime('%Y-%m-%d %H:%M', time.gmtime(started_at))}"
