"""A build's record that survives MLflow failures: records that MLflow does not accept wait in the spool."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Unpack

from engineworks.errors import TrackingError
from engineworks.tracking import spool
from engineworks.tracking.build_run import BuildRun
from engineworks.tracking.ending import Ending, EndStatus, Values
from engineworks.tracking.owner import current_owner
from engineworks.tracking.records import EngineRecord
from engineworks.tracking.runs import Tracking
from engineworks.tracking.sending import send_waiting


def start_spooled(
    tracking: Tracking,
    artifacts: Path,
    recipe: str,
    build_key: str,
    tags: Mapping[str, str],
    params: Mapping[str, str],
    store_keys: Iterable[str] = (),
) -> SpooledRun:
    """Send waiting records of earlier builds, then open the record of this one: in MLflow, else in the spool.

    Raises `TrackingError` only where the spool cannot be written either.
    """
    now = time.time()
    head = spool.Head(
        f"{round(now * 1000):013d}-{secrets.token_hex(6)}", recipe, build_key, current_owner().to_text(), now,
        "", dict(tags), dict(params), tuple(store_keys),
    )  # fmt: skip
    run = SpooledRun(artifacts, head)
    try:
        send_waiting(tracking, artifacts)
        run.open(tracking.start_build(recipe, build_key, tags, params, head.store_keys, mark=head.id))
    except TrackingError as error:
        run.wait_because(error)
    return run


class SpooledRun(Ending):
    """The parent run of a build, as `BuildRun`. waits: why its records wait in the spool, '' while MLflow has them."""

    def __init__(self, artifacts: Path, head: spool.Head) -> None:
        self.recipe = head.recipe
        self.waits = ""
        self._artifacts, self._head = artifacts, head
        self._run: BuildRun | None = None
        self._spool: spool.SpoolFile | None = None
        self._run_id = ""
        self._ended = False
        self._lock = threading.RLock()
        self._sent: list[tuple[str, float, Mapping[str, Any]]] = []

    def open(self, run: BuildRun) -> None:
        self._run, self._run_id = run, run.run_id

    @property
    def run_id(self) -> str:
        """Id of the run in MLflow; `waiting-…` where there is none yet."""
        return self._run_id

    @property
    def warning(self) -> str:
        """A sentence for the user where records wait, else ''."""
        if not self.waits:
            return ""
        return waiting_message(self._artifacts, self.waits)

    def wait_because(self, error: TrackingError) -> None:
        """Send everything to the spool from now on, with all that MLflow has got so far: it may have lost that, and
        the same record sent twice is one. Raises `TrackingError` where the spool cannot be written."""
        head = self._head
        if self._run is None and (dead := spool.take_over(self._artifacts, head.build_key)) is not None:
            self._spool, self._run_id = spool.SpoolFile(dead.path), dead.run_id
        else:
            known = self._run.run_id if self._run else ""
            head = spool.Head(**{**vars(head), "run_id": known})
            self._spool = spool.create(self._artifacts, head)
            self._run_id = self._run_id or spool.WAITING + head.id
        for what, at, values in self._sent:
            self._spool.append(what, at, **values)
        self.waits = error.message

    def record_engine(self, record: EngineRecord) -> None:
        """Record one engine in one step."""
        self._keep("engine", lambda run: run.record_engine(record), {"record": spool.engine_to_json(record)})

    def finish(self, status: EndStatus = "FINISHED", **values: Unpack[Values]) -> None:
        """End the run."""
        self._keep("finish", lambda run: run.finish(status, **values), {"status": status, **values})
        self._ended = True

    def _keep(self, what: str, write: Callable[[BuildRun], object], values: Mapping[str, Any]) -> None:
        """Write to MLflow, or to the spool since MLflow's first refusal. Both use one time: if MLflow accepted a metric
        but its answer was lost, the repeated send is the same metric."""
        at = time.time()
        with self._lock:
            if self._spool is None and self._run is not None:
                try:
                    self._run.write_as_of(at)
                    write(self._run)
                    self._sent.append((what, at, values))
                    return
                except TrackingError as error:
                    self.wait_because(error)
            assert self._spool is not None
            self._spool.append(what, at, **values)


def waiting_message(artifacts: Path, why: str) -> str:
    """Return the sentence for a build whose records wait."""
    return (
        f"the records of this build wait in {artifacts / spool.FOLDER} ({why}): "
        f"the next build sends them, or 'engineworks sync'"
    )
