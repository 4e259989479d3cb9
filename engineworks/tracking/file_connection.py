"""A connection that reads and writes runs in MLflow's own SQLite file, where its schema is known.

MLflow's client takes much longer. What the file does not hold, such as artifacts elsewhere, the client still does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from engineworks.tracking.connection import Connection, refusals
from engineworks.tracking.reader import ModelRecord, RunQuery, VersionRecord
from engineworks.tracking.records import Batch, RunSummary, Status
from engineworks.tracking.sqlite_writer import SqliteWriter, write_artifacts


@dataclass(frozen=True)
class FileConnection(Connection):
    """As `Connection`."""

    file: SqliteWriter = field(kw_only=True)

    def _create(self, name: str, tags: Mapping[str, str], started_ms: int) -> str:
        return self.file.create_run(name, tags, started_ms)

    def log(
        self, run_id: str, batch: Batch, texts: Mapping[str, str], files: Mapping[str, Path],
        end: tuple[Status, float] | None = None,
    ) -> None:  # fmt: skip
        now = round(self.now() * 1000)
        with refusals(f"run {run_id} cannot be written"):
            self._log_artifacts(run_id, dict(texts) | dict(batch.texts), files)
            self.file.log(run_id, batch, now, end and (end[0], self._end_ms(end[1])))

    def _log_artifacts(self, run_id: str, texts: Mapping[str, str], files: Mapping[str, Path]) -> None:
        folder = self.file.artifacts(run_id) if texts or files else None
        if folder is None:
            super()._log_artifacts(run_id, texts, files)
        else:
            write_artifacts(folder, texts, files)

    def end_run(self, run_id: str, status: Status, started_at: float = 0.0) -> None:
        with refusals(f"run {run_id} cannot be ended"):
            self.file.end_run(run_id, status, self._end_ms(started_at))

    def get_run(self, run_id: str) -> RunSummary:
        return self.file.get_run(run_id)

    def experiment_tags(self) -> dict[str, str]:
        return self.file.experiment_tags()

    def tag_experiment(self, tags: Mapping[str, str]) -> None:
        with refusals("the experiment cannot be written"):
            self.file.tag_experiment(tags)

    def search(self, query: RunQuery, *, limit: int | None = None, everywhere: bool = False) -> Iterator[RunSummary]:
        return self.file.search(query, limit=limit, everywhere=everywhere)

    def has_files(self, run_id: str, sizes: Mapping[str, int]) -> bool:
        folder = self.file.artifacts(run_id)
        if folder is None:
            return super().has_files(run_id, sizes)
        return all(_size_of(folder / path) == size for path, size in sizes.items())

    def read_text(self, run_id: str, path: str) -> str:
        here = self.file.artifacts(run_id) is not None
        return self.file.read_text(run_id, path) if here else super().read_text(run_id, path)

    def find_model(self, name: str) -> ModelRecord | None:
        return self.file.find_model(name)

    def find_version(self, model: str, version: str) -> VersionRecord | None:
        return self.file.find_version(model, version)

    def find_models(self, recipe: str | None) -> list[ModelRecord]:
        return self.file.find_models(recipe)


def _size_of(file: Path) -> int | None:
    """Return its bytes, None where there is no such file."""
    try:
        return file.stat().st_size
    except OSError:
        return None
