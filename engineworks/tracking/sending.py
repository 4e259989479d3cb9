"""Sends waiting records to MLflow, each once.

A send repeated after a kill writes to the same places. A tag with its id finds the build's run, and its name an
engine's. Metrics keep the time of their first record.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from engineworks.errors import TrackingError
from engineworks.host.lock import locked
from engineworks.tracking import spool
from engineworks.tracking.build_run import BuildRun
from engineworks.tracking.runs import Tracking
from engineworks.tracking.spool import Entry, Waiting

FILES_LOST = "engineworks.files_lost"
"""Tag: paths of an engine's files that the store no longer had when its record was sent."""


@dataclass(frozen=True)
class Sent:
    """The result of sending. builds: the MLflow run by spool id. left: one sentence for each build that MLflow
    refused."""

    builds: dict[str, str]
    left: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {"sent": self.builds, "left": list(self.left)}


def send_waiting(tracking: Tracking, artifacts: Path) -> Sent:
    """Send waiting records, oldest first, except of running builds. A build that MLflow refuses does not stop others.

    Raises `TrackingError` where MLflow does not answer; records sent before stay sent.
    """
    if next(spool.read_all(artifacts), None) is None:
        return Sent({})
    sent: dict[str, str] = {}
    left: list[str] = []
    tracking.check()
    with locked(artifacts / spool.FOLDER / ".lock"):  # two processes would send twice
        for waiting in spool.read_all(artifacts):
            if not (waiting.finished or waiting.abandoned):
                continue
            try:
                sent[waiting.head.id] = _send(tracking, waiting)
            except TrackingError as error:
                tracking.check()
                left.append(f"{waiting.head.recipe} ({waiting.path.name}): {error}")
                continue
            _keep_report(artifacts, waiting, sent[waiting.head.id])
            waiting.path.unlink()
    return Sent(sent, tuple(left))


def _send(tracking: Tracking, waiting: Waiting) -> str:
    """Send one build. The run of an abandoned build stays RUNNING with its dead owner: the next build of its key
    continues it."""
    head = waiting.head
    run = tracking.open_waiting(head.id, head.run_id, head.recipe, head.build_key, waiting.owner, head.started_at)
    run.log(params=head.params, tags=head.tags, store_keys=head.store_keys)
    for entry in waiting.entries:
        run.write_as_of(entry["at"])
        _replay(run, entry)
    run.verify()
    return run.run_id


def _replay(run: BuildRun, entry: Entry) -> None:
    values = {name: value for name, value in entry.items() if name not in ("what", "at")}
    if entry["what"] == "finish":
        run.finish(**values)
    elif entry["what"] == "engine":
        record = spool.engine_from_json(values["record"])
        lost = sorted(path for path, file in record.files.items() if not file.is_file())
        if lost:
            record = replace(record, files={}, tags={**record.tags, FILES_LOST: ", ".join(lost)})
        run.record_engine(record)


def _keep_report(artifacts: Path, waiting: Waiting, run_id: str) -> None:
    """Make the report available under the run's id too; its original place stays valid."""
    runs = artifacts / "runs"
    if (runs / waiting.run_id).is_dir():
        with contextlib.suppress(FileExistsError):
            (runs / run_id).symlink_to(waiting.run_id)
