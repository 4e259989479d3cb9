"""Did you mean …?"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def did_you_mean(word: str, known: Iterable[str], *, many: int = 12) -> str:
    """A hint for a mistyped word: the closest known one, else the list of what there is (shortened)."""
    names = sorted(known)
    close = get_close_matches(word, names, n=1, cutoff=0.6)
    if close:
        return f"did you mean '{close[0]}'?"
    if not names:
        return "there are none"
    shown = ", ".join(names[:many]) + (f", … ({len(names)} in all)" if len(names) > many else "")
    return f"known: {shown}"
