"""The engines that `--only` selects: comma-separated globs over their ids, any of which may match."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from engineworks.errors import TargetError, did_you_mean


def selects(only: str | None, engine: str) -> bool:
    """Whether the globs select this engine; without any, all are selected."""
    return only is None or any(fnmatchcase(engine, glob) for glob in only.split(","))


def select(only: str | None, engines: Sequence[str], recipe: str) -> list[str]:
    """The ids that the globs select, in their order. Raises `TargetError` if there are none."""
    chosen = [engine for engine in engines if selects(only, engine)]
    if not chosen:
        refuse_unmatched(only, engines, recipe)
    return chosen


def refuse_unmatched(only: str | None, engines: Sequence[str], recipe: str) -> None:
    """Raises `TargetError` for a glob that matches none of the ids."""
    for glob in only.split(",") if only is not None else ():
        if not any(selects(glob, engine) for engine in engines):
            raise TargetError(f"--only '{glob}' matches no engine of {recipe}", hint=did_you_mean(glob, engines))
