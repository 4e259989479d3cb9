"""What is read from MLflow, and searches for its runs. By its client (`connection`), or from its SQLite file without
importing it (`sqlite_reader`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from engineworks.errors import TrackingError
from engineworks.tracking.records import RunSummary


@dataclass(frozen=True)
class RunQuery:
    """Runs that fulfill all of these. tags: with these values. starting: tags whose values start with these texts.
    since: started at or after this time, in seconds since the epoch. run_ids: one of these; None: any."""

    tags: Mapping[str, str] = field(default_factory=dict)
    status: str | None = None
    since: float | None = None
    run_ids: Sequence[str] | None = None
    starting: Mapping[str, str] = field(default_factory=dict)

    def to_mlflow(self) -> str:
        parts = [f"tags.`{name}` = {quoted(value)}" for name, value in self.tags.items()]
        parts += [f"tags.`{name}` LIKE {quoted(value + '%')}" for name, value in self.starting.items()]
        parts += [f"attributes.status = {quoted(self.status)}"] if self.status else []
        parts += [f"attributes.start_time >= {self.since * 1000:.0f}"] if self.since is not None else []
        if self.run_ids is not None:
            parts.append(f"attributes.run_id IN ({', '.join(map(quoted, self.run_ids))})")
        return " AND ".join(parts)


def quoted(value: str) -> str:
    mark = '"' if "'" in value else "'"
    if mark in value:
        raise TrackingError(f"MLflow cannot search for {value!r}: it holds both kinds of quotes")
    return f"{mark}{value}{mark}"


@dataclass(frozen=True)
class ModelRecord:
    """A registered model. aliases: version by alias."""

    name: str
    tags: Mapping[str, str]
    aliases: Mapping[str, str]


@dataclass(frozen=True)
class VersionRecord:
    """A version of a registered model. created_at: seconds since the epoch."""

    model: str
    version: str
    tags: Mapping[str, str]
    run_id: str
    created_at: float


class Reader(Protocol):
    """Every method raises `TrackingError` where MLflow, or its file, cannot be read."""

    @property
    def experiment_id(self) -> str: ...

    def experiment_tags(self) -> dict[str, str]: ...

    def get_run(self, run_id: str) -> RunSummary: ...

    def search(self, query: RunQuery, *, limit: int | None = None, everywhere: bool = False) -> Iterator[RunSummary]:
        """Yield runs that are not deleted, newest first; `everywhere` searches all experiments."""

    def read_text(self, run_id: str, path: str) -> str: ...

    def find_model(self, name: str) -> ModelRecord | None: ...

    def find_version(self, model: str, version: str) -> VersionRecord | None: ...

    def find_models(self, recipe: str | None) -> list[ModelRecord]:
        """Return Engineworks' registered models, by name; recipe: only this recipe's."""
