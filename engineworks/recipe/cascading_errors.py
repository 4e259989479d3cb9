"""Problems that echo another one: a value that is wrong is also one that is missing. They would hide the cause."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from engineworks.errors import Problem
from engineworks.recipe.yaml_nodes import Node

Path_ = tuple[str | int, ...]


def without_cascading(found: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Pydantic's errors without lists that are too short for an entry of theirs is wrong, and without keys that are
    missing for they are misspelt."""
    return [one for one in found if not _short_for_another(one, found) and not _misspelt(one, found)]


def _short_for_another(one: Mapping[str, Any], found: Sequence[Mapping[str, Any]]) -> bool:
    where = one["loc"]
    return one["type"] == "too_short" and any(
        len(other["loc"]) > len(where) and other["loc"][: len(where)] == where for other in found
    )


def _misspelt(one: Mapping[str, Any], found: Sequence[Mapping[str, Any]]) -> bool:
    if one["type"] != "missing":
        return False
    beside = [str(o["loc"][-1]) for o in found if o["type"] == "extra_forbidden" and o["loc"][:-1] == one["loc"][:-1]]
    return bool(get_close_matches(str(one["loc"][-1]), beside, n=1, cutoff=0.6))


def meant_key(extra: Mapping[str, Any], found: Sequence[Mapping[str, Any]]) -> str:
    """The missing key that an unknown one beside it is likely to mean, or ''."""
    missing = [str(o["loc"][-1]) for o in found if o["type"] == "missing" and o["loc"][:-1] == extra["loc"][:-1]]
    return next(iter(get_close_matches(str(extra["loc"][-1]), missing, n=1, cutoff=0.6)), "")


def is_cascading(problem: Problem, *, node: Node, wrong: Collection[Path_], refused: bool) -> bool:
    """Whether the problem is there only because the values at `wrong` were taken out of `node`. refused: whether there
    are problems besides."""
    if problem.message.startswith("model.source names no source"):
        return refused
    return any(_of_inner(problem, node, path) or _of_elsewhere(problem, path) for path in wrong)


def _of_inner(problem: Problem, node: Node, path: Path_) -> bool:
    """Something that encloses the wrong value has now too little in it."""
    above = [path[:length] for length in range(1, len(path))]
    return problem.place in {place for p in above for place in (node.at(p).place, node.key_place(p))}


def _of_elsewhere(problem: Problem, path: Path_) -> bool:
    """What refers to the wrong value from another place."""
    if path[:2] == ("accuracy", "limits"):
        return "accuracy.limits says nothing of" in problem.message
    if path[0] == "shapes":
        return "need profiles under 'shapes'" in problem.message or "outside of every profile" in problem.message
    if path[:2] == ("accuracy", "metric"):
        return "needs accuracy.metric" in problem.message
    named = {"inputs": "input", "outputs": "output"}.get(str(path[0]))
    return named is not None and len(path) > 1 and f"{named} '{path[1]}'" in problem.message
