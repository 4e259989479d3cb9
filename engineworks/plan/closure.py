"""What a step of a plan depends on."""

from __future__ import annotations

from collections.abc import Callable, Iterable


def closure(keys: Iterable[str], inputs: Callable[[str], Iterable[str]]) -> set[str]:
    """Return these keys and all their direct and indirect inputs. inputs: the keys that a step reads, by its key."""
    pending, visited = list(keys), set[str]()
    while pending:
        key = pending.pop()
        if key not in visited:
            visited.add(key)
            pending.extend(inputs(key))
    return visited
