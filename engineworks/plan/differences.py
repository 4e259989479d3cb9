"""What differs between two documents, in words: the reason of a step that is to do."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any


def changes(before: Any, now: Any, path: str = "") -> Iterable[str]:
    """Yield the differences between two documents, one line each: 'params.keep changed', 'input fold changed'."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for key in sorted({*before, *now}):
            if key not in before or key not in now:
                yield f"{_described(path, key)} is {'new' if key in now else 'gone'}"
            else:
                yield from changes(before[key], now[key], f"{path}.{key}" if path else str(key))
    elif before != now:
        named = path.startswith(("inputs.", "digests.", "libraries."))  # file names hold dots too
        head, _, tail = path.partition(".") if named else path.rpartition(".")
        short = len(str(before)) <= 24 and len(str(now)) <= 24
        yield _described(head, tail) + (f" changed from {before} to {now}" if short else " changed")


def _described(path: str, key: str) -> str:
    descriptions = {"inputs": f"step '{key}'", "digests": f"file {key}", "libraries": f"version of {key}"}
    top = path.partition(".")[0]
    return descriptions.get(top) or (
        f"{path.removeprefix('params').removeprefix('.')}.{key}".lstrip(".") if path else key
    )
