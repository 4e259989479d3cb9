"""The record of one build: its parent run, and a child run of each of its engines."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Unpack

from engineworks.errors import TrackingError
from engineworks.tracking.connection import Connection
from engineworks.tracking.ending import Ending, EndStatus, Values
from engineworks.tracking.reader import RunQuery
from engineworks.tracking.records import (
    ENGINE,
    ENGINE_DIGEST,
    ENGINE_RUN,
    KIND,
    PARENT,
    RECIPE,
    Batch,
    EngineRecord,
    pack_batch,
)


@dataclass
class _Child:
    run_id: str
    running: bool
    params: Mapping[str, str] = field(default_factory=dict)
    started_at: float = 0.0


class BuildRun(Ending):
    """The parent run of one build. Threads may record different engines concurrently."""

    run_id: str

    def __init__(
        self, link: Connection, run_id: str, recipe: str, params: Mapping[str, str], *, resumed: bool,
        started_at: float = 0.0,
    ) -> None:  # fmt: skip
        self._started_at = started_at
        self.run_id = run_id
        self.recipe = recipe
        self.resumed = resumed
        self._link = link
        self._params = dict(params)
        self._lock = threading.Lock()
        self._children: dict[str, _Child] | None = None if resumed else {}
        self._ended = False
        self._written: dict[str, tuple[dict[str, str], dict[str, int]]] = {}

    def write_as_of(self, at: float) -> None:
        """Record `at` (seconds since the epoch) as the time of everything written from now on."""
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
        self._note_written(self.run_id, batch, texts or {})
        self._params |= batch.params

    def record_engine(self, record: EngineRecord) -> str:
        """Record one engine in one step; returns its run id. An engine recorded again reuses its run."""
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
        self._link.log(child.run_id, batch, record.texts, files, end=(record.status, child.started_at))
        self._note_written(child.run_id, batch, record.texts)
        child.running = False
        child.params = {**child.params, **batch.params}
        return child.run_id

    def finish(self, status: EndStatus = "FINISHED", **values: Unpack[Values]) -> None:
        """End the run. Engines with an incomplete record end as KILLED."""
        if any(values.values()):
            self.log(**values)
        for child in (self._children or {}).values():
            if child.running:
                self._link.end_run(child.run_id, "KILLED", child.started_at)
        self._link.end_run(self.run_id, status, self._started_at)
        self.verify()
        self._ended = True

    def verify(self) -> None:
        """Read back what was written: the runs with their tags, and their files where MLflow has no server. Raises
        `TrackingError` for what is missing."""
        self._link.check_database()
        runs = {run.run_id: run for run in self._link.search(RunQuery({PARENT: self.run_id, KIND: "engine"}))}
        runs[self.run_id] = self._link.get_run(self.run_id)
        for run_id, (tags, texts) in self._written.items():
            found = runs.get(run_id)
            if found is None or any(found.tags.get(name) != value for name, value in tags.items()):
                raise TrackingError(f"run {run_id} was written, but MLflow does not have it")
            if not self._link.is_server and not self._link.has_files(run_id, texts):
                raise TrackingError(f"files of run {run_id} were written, but MLflow does not have them")

    def _note_written(self, run_id: str, batch: Batch, texts: Mapping[str, str]) -> None:
        tags, sizes = self._written.setdefault(run_id, ({}, {}))
        tags.update(batch.tags)
        for path, text in {**texts, **batch.texts}.items():
            sizes[path] = len(text.encode(errors="backslashreplace"))

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
        runs = self._link.search(RunQuery({PARENT: self.run_id, KIND: "engine"}))
        return {
            run.engine: _Child(run.run_id, run.status == "RUNNING", run.params, run.started_at)
            for run in runs
            if run.engine
        }

    def _holder_of(self, digest: str, files: Mapping[str, Path]) -> str | None:
        """Return the run, not deleted, whose artifacts contain these files."""
        if not files:
            return None
        try:
            sizes = {path: file.stat().st_size for path, file in files.items()}
        except OSError as error:
            raise TrackingError(f"engine file {error.filename} cannot be read: {error.strerror}") from error
        with_it = self._link.search(RunQuery({ENGINE_DIGEST: digest}), limit=5)  # the newest name their holder
        for holder in dict.fromkeys(run.tags[ENGINE_RUN] for run in with_it if ENGINE_RUN in run.tags):
            there = next(self._link.search(RunQuery({ENGINE_DIGEST: digest}, run_ids=[holder])), None)  # not deleted
            if there is not None and self._link.has_files(holder, sizes):
                return holder
        return None
