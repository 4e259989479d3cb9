"""What is read from MLflow: by its client (`connection`), or from its SQLite file without importing it
(`sqlite_reader`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from engineworks.tracking.queries import RunQuery
from engineworks.tracking.records import RunSummary


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
