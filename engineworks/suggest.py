"""Did you mean …?"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

ALIASES = {
    "float": "float32", "fp32": "float32", "single": "float32", "half": "float16", "fp16": "float16",
    "double": "float64", "fp64": "float64", "int": "int32", "long": "int64", "float32": "fp32", "float16": "fp16",
    "bfloat16": "bf16", "accuracy": "top1", "acc": "top1", "min_max": "minmax", "kl": "entropy",
    "w8a16": "int8_weights", "w4a16": "int4_weights", "int4_int8": "w4a8",
}  # fmt: skip
"""Names in other tools; an alias counts only if its meaning is one of the known words."""


def did_you_mean(name: str, known: Iterable[str], *, many: int = 12) -> str:
    """A hint for a mistyped word: the closest known one, else the list of known words (shortened)."""
    names = sorted(known)
    if ALIASES.get(name.lower()) in names:
        return f"did you mean '{ALIASES[name.lower()]}'?"
    close = get_close_matches(name, names, n=1, cutoff=0.6)
    if close:
        return f"did you mean '{close[0]}'?"
    if not names:
        return "there are none"
    shown = ", ".join(names[:many]) + (f", … ({len(names)} in all)" if len(names) > many else "")
    return f"known: {shown}"
