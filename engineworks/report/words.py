"""Numbers of things, and times, in plain English."""

from __future__ import annotations

import time


def many(count: int, thing: str) -> str:
    """'1 step', '2 steps', '2 batches', '2 entries'."""
    if count == 1:
        return f"{count} {thing}"
    if thing.endswith("y") and thing[-2] not in "aeiou":
        return f"{count:,} {thing[:-1]}ies"
    return f"{count:,} {thing}{'es' if thing.endswith(('s', 'x', 'ch', 'sh')) else 's'}"


_UNITS = ((86400 * 365, "year"), (86400 * 30, "month"), (86400, "day"), (3600, "hour"), (60, "minute"))


def age(then: float, now: float | None = None) -> str:
    """'3 days ago' of a time in seconds since 1970; 'just now' below a minute, '' for 0."""
    if not then:
        return ""
    passed = max(0.0, (time.time() if now is None else now) - then)
    for seconds, unit in _UNITS:
        if passed >= seconds:
            return f"{many(int(passed // seconds), unit)} ago"
    return "just now"


def day(at: float) -> str:
    """'2026-11-21 03:12 UTC'."""
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(at))
