"""Distributions installed here, read from package metadata: nothing is imported."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from importlib import metadata


@cache
def installed_version(distribution: str) -> str | None:
    """Its version, None where it is not installed."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def installed_versions(distributions: Iterable[str]) -> dict[str, str | None]:
    """By name, in the same order."""
    return {name: installed_version(name) for name in distributions}
