"""Waiting records → MLflow, each thing once.

Sent again after a kill in the middle, everything goes where it went before: the build's run is found by the tag of its
id, an engine's by its name, and a metric is written with the time at which it was first recorded.
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
"""Tag: paths of an engine's files that were gone from the store when its record was sent."""


@dataclass(frozen=True)
class Sent:
    """builds: by spool id, the MLflow run that they are in now. left: one sentence for each
    build that MLflow refused."""

    builds: dict[str, str]
    left: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {"sent": self.builds, "left": list(self.left)}


def send_waiting(tracking: Tracking, artifacts: Path) -> Sent:
    """Send what waits, oldest first, but for builds that still run. A build that MLflow refuses stops no other.

    Raises `TrackingError` where MLflow does not answer; what was sent until then stays sent.
    """
    if next(spool.read_all(artifacts), None) is None:
        return Sent({})
    sent: dict[str, str] = {}
    left: list[str] = []
    tracking.check()
    with locked(artifacts / spool.FOLDER / ".lock"):  # two at once would send twice
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
    """The run of an abandoned build stays RUNNING, with its dead owner: the next build of its key goes on in it."""
    head = waiting.head
    run = tracking.open_waiting(head.id, head.run_id, head.recipe, head.build_key, waiting.owner, head.started_at)
    run.log(params=head.params, tags=head.tags, store_keys=head.store_keys)
    for entry in waiting.entries:
        run.write_as_of(entry["at"])
        _replay(run, entry)
    return run.run_id


def _replay(run: BuildRun, entry: Entry) -> None:
    values = {name: value for name, value in entry.items() if name not in ("what", "at")}
    if entry["what"] == "log":
        run.log(**values)
    elif entry["what"] == "finish":
        run.finish(**values)
    elif entry["what"] == "engine":
        record = spool.engine_from_json(values["record"])
        lost = sorted(path for path, file in record.files.items() if not file.is_file())
        if lost:
            record = replace(record, files={}, tags={**record.tags, FILES_LOST: ", ".join(lost)})
        run.record_engine(record)


def _keep_report(artifacts: Path, waiting: Waiting, run_id: str) -> None:
    """The report is found under the run's id too; the place that the build named stays."""
    runs = artifacts / "runs"
    if (runs / waiting.run_id).is_dir():
        with contextlib.suppress(FileExistsError):
            (runs / run_id).symlink_to(waiting.run_id)
