"""Searches for runs, and their form in MLflow's search language."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from engineworks.errors import TrackingError


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
