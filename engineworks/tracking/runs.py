"""A build is a parent run, each of its engines a child run. A build that was killed goes on in the runs it has."""

from __future__ import annotations

import contextlib
import json
import shlex
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Literal

from engineworks.errors import TrackingError
from engineworks.host.collector import collect_apart
from engineworks.host.lock import locked
from engineworks.tracking.aliases import Slot
from engineworks.tracking.build_run import BuildRun
from engineworks.tracking.champion_list import RegisteredChampion, Standing, list_champions, standings
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
from engineworks.tracking.queries import query_of, quoted
from engineworks.tracking.records import (
    BUILD_KEY,
    CONDITIONS,
    ENGINE,
    KIND,
    NOTE,
    OWNER,
    RECIPE,
    RECORD,
    RESUMES,
    STORE_KEYS,
    Batch,
    RegisteredVersion,
    RunSummary,
    pack_batch,
    store_keys_of,
)
from engineworks.tracking.registry import Registry

MOST_LATER = 1000
"""Runs of builds that `finished_builds` reads, where it would rather know all that are newer than some."""

NAMED_AT_ONCE = 100
"""Ids of runs in one search: MLflow parses every query in Python."""


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
                collect_apart()  # the thread parses, and so does who goes on meanwhile
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
        queries = ([f"attributes.run_id = {quoted(run_id)}"] if run_id else []) + [query_of({RECORD: mark})]
        known = next((run for query in queries for run in link.search(query, limit=1)), None)
        if known is not None:
            return BuildRun(link, known.run_id, recipe, known.params, resumed=True, started_at=known.started_at)
        tags = {KIND: "build", RECIPE: recipe, BUILD_KEY: build_key, OWNER: owner, RECORD: mark}
        run_id = link.create_run(recipe, tags, started_at)
        return BuildRun(link, run_id, recipe, {}, resumed=True, started_at=started_at)

    def check(self) -> None:
        """Raise `TrackingError` unless MLflow answers now."""
        next(self._connect().search(query_of({KIND: "build"}), limit=1), None)

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
        query = query_of({name: value for name, value in wanted.items() if value is not None})
        return list(self._connect().search(query, limit=limit))

    def finished_builds(self, run_ids: Sequence[str], since: float) -> dict[tuple[str, str], str]:
        """By recipe and build key, the newest finished build of all that are named or began later than `since` (seconds
        since the epoch). Two searches or a few, where one for every recipe takes MLflow seconds.

        Nothing where so much was built since then that reading it all is not worth it.
        """
        link = self._connect()
        builds = query_of({KIND: "build"}) + " AND attributes.status = 'FINISHED'"
        later = list(link.search(f"{builds} AND attributes.start_time >= {since * 1000:.0f}", limit=MOST_LATER + 1))
        if len(later) > MOST_LATER:
            return {}
        named: list[RunSummary] = []
        missing = sorted(set(run_ids) - {run.run_id for run in later})
        for at in range(0, len(missing), NAMED_AT_ONCE):
            ids = ", ".join(map(quoted, missing[at : at + NAMED_AT_ONCE]))
            named += link.search(f"{builds} AND attributes.run_id IN ({ids})")
        in_order = sorted((*named, *later), key=lambda run: run.started_at)
        return {(run.recipe, run.build_key): run.run_id for run in in_order if run.build_key}

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

    def standings(self, slots: Iterable[Slot]) -> dict[Slot, Standing]:
        """Of each slot the champions as recorded, and what is missing of the present one."""
        return standings(self._connect(), slots)

    def champions(self, recipe: str | None = None) -> list[RegisteredChampion]:
        """Every champion that Engineworks registered, or this recipe's alone; missing ones too."""
        return list_champions(self._connect(), recipe)

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
        query = query_of({BUILD_KEY: build_key, KIND: "build"}) + " AND attributes.status = 'RUNNING'"
        owners = [(run, read_owner(run.tags.get(OWNER, ""))) for run in link.search(query)]
        return [run for run, owner in owners if owner is not None and owner.is_dead()]
