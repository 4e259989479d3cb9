"""The records (MLflow stores) that refer to a store's artifacts, noted in the store by every build.

    <root>/records/<digest>.json    one record: its id, its artifacts folder and its tracking URI

gc asks each of them. A record that is missing or another than noted may still need what gc would free.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from engineworks.errors import StoreError
from engineworks.fingerprint import digest_of
from engineworks.host.atomic_write import write_atomically

FOLDER = "records"


@dataclass(frozen=True)
class NotedRecord:
    """A record. artifacts: its artifacts folder, where unsent records wait. uri: tracking URI without password. id: of
    the MLflow experiment for all time, '' as long as it has not answered."""

    artifacts: str
    uri: str
    id: str = ""

    def path_in(self, root: Path) -> Path:
        return root / FOLDER / f"{digest_of(asdict(self))[:16]}.json"


def note_record(root: Path, record: NotedRecord) -> None:
    """Note the record. With an id it replaces a note of its place without one; a note with another id stays, because
    that record may still exist. Raises `StoreError`."""
    path = record.path_in(root)
    if _read(path) == record:
        return
    try:
        write_atomically(path, json.dumps(asdict(record), indent=1).encode())
        if record.id:
            replace(record, id="").path_in(root).unlink(missing_ok=True)
    except OSError as error:
        raise StoreError(f"the store {root} cannot be written: {error.strerror}") from None


def noted_records(root: Path) -> Iterator[tuple[Path, NotedRecord]]:
    """Yield every note's file and record. Raises `StoreError` for a note that cannot be read."""
    for path in sorted((root / FOLDER).glob("*.json")):
        record = _read(path)
        if record is None:
            raise StoreError(f"{path} cannot be read: it names a record that may need artifacts of this store")
        yield path, record


def _read(path: Path) -> NotedRecord | None:
    with contextlib.suppress(OSError, ValueError, TypeError):
        return NotedRecord(**json.loads(path.read_bytes()))
    return None
