"""Times in words."""

from __future__ import annotations

import time

_UNITS = ((86400 * 365, "year"), (86400 * 30, "month"), (86400, "day"), (3600, "hour"), (60, "minute"))


def age(then: float, now: float | None = None) -> str:
    """'3 days ago' of a time in seconds since 1970; 'just now' below a minute, '' for 0."""
    if not then:
        return ""
    passed = max(0.0, (time.time() if now is None else now) - then)
    for seconds, unit in _UNITS:
        if passed >= seconds:
            count = int(passed // seconds)
            return f"{count} {unit}{'s' if count > 1 else ''} ago"
    return "just now"


def day(at: float) -> str:
    """'2026-11-21 03:12 UTC'."""
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(at))
