"""Is a stream's answer the same in every situation it meets while it is served? Pure: logits in, findings out.

The plain answer is the stream alone, its prompt at once and then token by token. In every other situation its logits
must be the same up to rounding: another batch size computes the same sums in another order. The tolerances are of the
type that the engine computes in, however coarse its weights: these are the same in every situation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

TOLERANCES: Mapping[str, float] = {"fp32": 1e-3, "fp16": 2e-2, "bf16": 1e-1, "w4a8": 5e-2}
"""Largest difference of a position's logits, root mean square, relative to their spread."""

SITUATIONS: Mapping[str, str] = {
    "at_once": "step by step equals all at once",
    "beside": "the same alone and beside other streams",
    "places": "the same at other places of the batch",
    "joining": "the same when other streams join and leave",
    "reused": "the cache is clean after another prompt in the same buffers",
    "lengths": "right with prompts of different lengths in one batch",
    "end": "right up to the end of the context",
    "beyond": "a clear error beyond the context",
    "again": "the same after warm-up",
    "graph": "the same in a CUDA graph",
}
"""Name of each situation → what holds if it is right."""


def difference(got: NDArray[Any], plain: NDArray[Any]) -> NDArray[np.float64]:
    """Return each position's difference: rms(got − plain) / rms(plain − mean), f64 [positions]; inf where a value is
    not finite. got, plain: [positions, vocabulary]."""
    a, b = got.astype(np.float64), plain.astype(np.float64)
    with np.errstate(invalid="ignore"):
        spread = np.sqrt(np.square(b - b.mean(axis=-1, keepdims=True)).mean(axis=-1))
        error = np.sqrt(np.square(a - b).mean(axis=-1)) / np.maximum(spread, 1e-12)
    return np.where(np.isfinite(error), error, np.inf)


def worst_position(got: NDArray[Any], plain: NDArray[Any], first: int = 0) -> dict[str, Any]:
    """Return {difference, position}: the worst, with its number counted from `first`; difference None if infinite."""
    errors = difference(got, plain)
    at = int(errors.argmax())
    value = float(errors[at])
    return {"difference": value if np.isfinite(value) else None, "position": first + at}


def worst_of(found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the worst of several, None counting as worst."""
    return dict(max(found, key=lambda f: np.inf if f["difference"] is None else f["difference"]))


def is_right(situation: Mapping[str, Any], computes: str) -> bool:
    """Whether a situation's worst difference is within the tolerance of the type that the engine computes in."""
    if "refused" in situation:
        return bool(situation["refused"])
    value = situation["difference"]
    return value is not None and value <= TOLERANCES[computes]
