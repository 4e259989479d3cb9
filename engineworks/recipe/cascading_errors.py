"""Problems that only follow from another one, such as a wrong value that also counts as missing. They hide it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from engineworks.errors import Keys, Problem
from engineworks.recipe.yaml_nodes import Node

RENAMED: Mapping[Keys, str] = {
    ("calibration", "around"): "unquantized",
    ("performance", "regression", "most_s"): "max_s",
    ("time_limits", "duel"): "compare_champion",
}
"""Path of an old key → its new name, which the message gives that refuses the old one."""

Error = Mapping[str, Any]
"""An error as pydantic's `ValidationError.errors()` lists it."""


def without_cascading(errors: Sequence[Error]) -> list[Error]:
    """The errors, except lists that are too short because an entry is wrong, and missing keys that are misspelt."""
    return [error for error in errors if not _short_for_another(error, errors) and not _misspelt(error, errors)]


def _short_for_another(error: Error, errors: Sequence[Error]) -> bool:
    where = error["loc"]
    return error["type"] == "too_short" and any(
        len(other["loc"]) > len(where) and other["loc"][: len(where)] == where for other in errors
    )


def _misspelt(error: Error, errors: Sequence[Error]) -> bool:
    return error["type"] == "missing" and bool(_closest(error, _neighbours(error, errors, "extra_forbidden")))


def meant_key(extra: Error, errors: Sequence[Error]) -> str:
    """The new name of an old key, else the missing key that an unknown one probably means, or ''."""
    return RENAMED.get(tuple(extra["loc"]), "") or _closest(extra, _neighbours(extra, errors, "missing"))


def _neighbours(error: Error, errors: Sequence[Error], kind: str) -> list[str]:
    """Keys of the same mapping that have an error of this type."""
    return [str(e["loc"][-1]) for e in errors if e["type"] == kind and e["loc"][:-1] == error["loc"][:-1]]


def _closest(error: Error, keys: Sequence[str]) -> str:
    return next(iter(get_close_matches(str(error["loc"][-1]), keys, n=1, cutoff=0.6)), "")


def is_cascading(problem: Problem, *, node: Node, wrong: Collection[Keys]) -> bool:
    """Whether the problem exists only because the values at `wrong` were taken out of `node`.

    Either a part around one of them is too small without it, or the problem is about one of them.
    """
    about = problem.about
    return any(
        problem.place in _enclosing_places(node, path) or (about and path[: len(about)] == about) for path in wrong
    )


def _enclosing_places(node: Node, path: Keys) -> set[object]:
    above = [path[:length] for length in range(1, len(path))]
    return {place for p in above for place in (node.at(p).place, node.key_place(p))}
