"""Installed distributions, from package metadata; imports nothing."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from importlib import metadata


@cache
def installed_version(distribution: str) -> str | None:
    """Return its version, None where it is not installed."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def installed_versions(distributions: Iterable[str]) -> dict[str, str | None]:
    """Return versions by name, in the same order."""
    return {name: installed_version(name) for name in distributions}
