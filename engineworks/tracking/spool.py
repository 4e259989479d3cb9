"""Records that MLflow did not accept: one file per build, until `sending` can send them.

    <artifacts>/spool/<id>.jsonl    a head line, then one line per record, in order
    <artifacts>/spool/.lock         held by the sending process

A line is one append and a sync; readers ignore a line cut short by a kill -9 or a full disk.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from engineworks.errors import TrackingError
from engineworks.host.atomic_write import write_atomically
from engineworks.tracking.owner import current_owner, read_owner
from engineworks.tracking.records import EngineRecord

FOLDER = "spool"
WAITING = "waiting-"
"""Prefix of the id of a run that is not in MLflow yet."""

Entry = dict[str, Any]


@dataclass(frozen=True)
class Head:
    """The start of a build's run. id: identifies the build for all time, also as a tag of its MLflow run. run_id: of
    the run that MLflow created before it failed, '' for none. started_at: seconds since the epoch."""

    id: str
    recipe: str
    build_key: str
    owner: str
    started_at: float
    run_id: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)
    params: Mapping[str, str] = field(default_factory=dict)
    store_keys: tuple[str, ...] = ()


@dataclass(frozen=True)
class Waiting:
    """A build's waiting records. entries: `engine` (the last one of each engine) and `finish`."""

    path: Path
    head: Head
    entries: tuple[Entry, ...]
    owner: str

    @property
    def finished(self) -> bool:
        return any(entry["what"] == "finish" for entry in self.entries)

    @property
    def abandoned(self) -> bool:
        """Whether the process that wrote it is certainly dead and had not finished."""
        owner = read_owner(self.owner)
        return not self.finished and owner is not None and owner.is_dead()

    @property
    def run_id(self) -> str:
        return WAITING + self.head.id


class SpoolFile:
    """The records of one build while it writes them."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, what: str, at: float, **values: Any) -> None:
        """Append one record atomically. Raises `TrackingError` where it cannot be written."""
        line = json.dumps({"what": what, "at": at, **values}, ensure_ascii=False).encode() + b"\n"
        try:
            with self.path.open("r+b") as file:
                end = _complete_length(file.read())
                file.seek(end)
                file.truncate()
                try:
                    file.write(line)
                    file.flush()
                    os.fsync(file.fileno())
                except OSError:
                    os.truncate(self.path, end)
                    raise
        except OSError as error:
            raise TrackingError(f"records cannot be kept in {self.path}: {error.strerror}") from None


def create(artifacts: Path, head: Head) -> SpoolFile:
    """Create a file for a build. Raises `TrackingError`."""
    path = artifacts / FOLDER / f"{head.id}.jsonl"
    try:
        write_atomically(path, json.dumps(asdict(head), ensure_ascii=False).encode() + b"\n")
    except OSError as error:
        raise TrackingError(f"records cannot be kept in {path}: {error.strerror}") from None
    return SpoolFile(path)


def take_over(artifacts: Path, build_key: str) -> Waiting | None:
    """Take over the unfinished records of a build of this key whose process died."""
    for waiting in read_all(artifacts):
        if waiting.head.build_key == build_key and waiting.abandoned:
            SpoolFile(waiting.path).append("owner", waiting.head.started_at, owner=current_owner().to_text())
            return waiting
    return None


def read_all(artifacts: Path) -> Iterator[Waiting]:
    """Yield all waiting builds, oldest first; skips files without records."""
    for path in sorted((artifacts / FOLDER).glob("*.jsonl")):
        waiting = read(path)
        if waiting is not None:
            yield waiting


def read(path: Path) -> Waiting | None:
    """Return one build's records; None without records or head."""
    try:
        data = path.read_bytes()
        first, *lines = data[: _complete_length(data)].splitlines()
        head = Head(**json.loads(first))
        entries: list[Entry] = [json.loads(line) for line in lines]
    except (OSError, ValueError, TypeError):
        return None
    owners = [e["owner"] for e in entries if e["what"] == "owner"]
    last = {e["record"]["id"]: e for e in entries if e["what"] == "engine"}
    kept = [e for e in entries if e["what"] != "owner" and (e["what"] != "engine" or last[e["record"]["id"]] is e)]
    return Waiting(path, head, tuple(kept), owners[-1] if owners else head.owner)


def finished_build(artifacts: Path, build_key: str) -> Waiting | None:
    """Return the newest finished build of this key that waits."""
    return next((w for w in reversed(list(read_all(artifacts))) if w.head.build_key == build_key and w.finished), None)


def keys_in_use(artifacts: Path) -> set[str]:
    """Return the store keys that waiting records refer to."""
    keys: set[str] = set()
    for waiting in read_all(artifacts):
        keys.update(waiting.head.store_keys)
        for entry in waiting.entries:
            keys.update(entry.get("store_keys", ()), entry.get("record", {}).get("store_keys", ()))
    return keys


def engine_to_json(record: EngineRecord) -> Entry:
    """Convert an engine's record to JSON; NaN metrics stay NaN."""
    values = {f.name: _plain(getattr(record, f.name)) for f in fields(record)}
    return values | {"files": {path: str(file) for path, file in record.files.items()}}


def engine_from_json(value: Mapping[str, Any]) -> EngineRecord:
    """Read what `engine_to_json` wrote."""
    series = {name: {int(step): v for step, v in values.items()} for name, values in value["series"].items()}
    files = {path: Path(file) for path, file in value["files"].items()}
    return EngineRecord(**{**value, "series": series, "files": files, "store_keys": tuple(value["store_keys"])})


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    return list(value) if isinstance(value, Iterable) and not isinstance(value, str) else value


def _complete_length(data: bytes) -> int:
    """Return the bytes up to the end of the last complete line."""
    return data.rfind(b"\n") + 1
