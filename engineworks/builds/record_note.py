"""Notes in the store which record refers to it, so that gc asks that record."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from engineworks.errors import TrackingError
from engineworks.store.record_notes import NotedRecord, note_record
from engineworks.store.store import Store
from engineworks.tracking.runs import Tracking


def note_used_by(store: Store, artifacts: Path, tracking: Tracking) -> None:
    """Note the record, first without id in case MLflow does not answer. Raises `StoreError`."""
    place = str(artifacts)
    note_record(store.root, NotedRecord(place, tracking.shown))
    with suppress(TrackingError):  # its records wait under `artifacts`
        note_record(store.root, NotedRecord(place, tracking.shown, tracking.record_id()))
