"""MLflow's search language."""

from __future__ import annotations

from collections.abc import Mapping

from engineworks.errors import TrackingError


def query_of(tags: Mapping[str, str]) -> str:
    """Return a search for runs with all these tags."""
    return " AND ".join(f"tags.`{name}` = {quoted(value)}" for name, value in tags.items())


def quoted(value: str) -> str:
    mark = '"' if "'" in value else "'"
    if mark in value:
        raise TrackingError(f"MLflow cannot search for {value!r}: it holds both kinds of quotes")
    return f"{mark}{value}{mark}"
