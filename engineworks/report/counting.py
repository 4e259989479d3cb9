"""Numbers of things in plain English."""

from __future__ import annotations


def many(count: int, thing: str) -> str:
    """'1 step', '2 steps', '2 batches', '2 entries'."""
    if count == 1:
        return f"{count} {thing}"
    if thing.endswith("y") and thing[-2] not in "aeiou":
        return f"{count:,} {thing[:-1]}ies"
    return f"{count:,} {thing}{'es' if thing.endswith(('s', 'x', 'ch', 'sh')) else 's'}"
