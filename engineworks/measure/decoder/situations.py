"""Is a stream's answer the same in every situation it meets while it is served? Pure: logits in, findings out.

The plain answer is the stream alone, its prompt at once and then token by token. In every other situation its logits
must be the same up to rounding: another batch size computes the same sums in another order, by other kernels. The
tolerance is 4 m, where one rounding moves the lowered model's own logits by m (`steps.decoder.lowered_reference`); at
least the usual one of the type that the engine computes in, at most LARGEST. Coarse weights are the same in every
situation. (SmolLM2-135M in fp16 has m = .03 to .05; its kernels for batch 1, batch 8 and prompts differ by .038 on an
H200.) Of w4a8 m is what the rounding of activations to int8 moves: it is known exactly, so nothing else is usual.

`leak` and `neighbour` need no tolerance: the same kernels at the same shapes must give the same bits, whatever other
memory holds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from engineworks.host.lazy import NDArray, np
from engineworks.measure.decoder.report import Difference, Exact, Refusal, Situation
from engineworks.measure.served_checks import MOVED

TOLERANCES: Mapping[str, float] = {"fp32": 1e-3, "fp16": 2e-2, "bf16": 1e-1, "w4a8": 5e-2}
"""Usual difference of a position's logits, root mean square, relative to their spread. w4a8: only where m is not known.
Largest of a block ≈ 3.5 σ, so a step is 3.5 σ / 127 and two independent roundings differ by .011 σ (√2 step / √12) in
every product; some twenty of them add up to .05."""

W4A8 = "w4a8"

LARGEST = 0.3
"""Another stream's token, position or cache makes a difference of 1 and more."""

SITUATIONS: Mapping[str, str] = {
    "at_once": "step by step equals all at once",
    "beside": "the same alone and beside other streams",
    "places": "the same at other places of the batch",
    "joining": "the same when other streams join and leave",
    "reused": "the cache is clean after another prompt in the same buffers",
    "leak": "bitwise the same whatever the buffers held before",
    "neighbour": "bitwise the same whatever another stream says",
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


def worst_position(got: NDArray[Any], plain: NDArray[Any], stream: int, first: int = 0) -> Difference:
    """Return the worst position, with its number counted from `first`."""
    errors = difference(got, plain)
    at = int(errors.argmax())
    value = float(errors[at])
    return Difference(value if np.isfinite(value) else None, first + at, stream)


def worst_of(found: Sequence[Situation]) -> Situation:
    """Return the worst of several, None counting as worst; of refusals whether all refused; of exact ones the first
    that is unequal, else one that was told."""
    refusals = [f for f in found if isinstance(f, Refusal)]
    if refusals:
        return Refusal(all(f.refused for f in refusals))
    exact = [f for f in found if isinstance(f, Exact)]
    if exact:
        return min(exact, key=lambda f: (f.equal is not False, f.equal is not None))
    differences = [f for f in found if isinstance(f, Difference)]
    return max(differences, key=lambda f: np.inf if f.difference is None else f.difference)


def tolerance(computes: str, moved: float | None) -> float:
    """Return the largest difference that rounding explains. computes: the type that the engine computes in. moved: how
    far one rounding moves the lowered model's logits, None if that is not known."""
    usual = TOLERANCES["fp32" if computes == W4A8 and moved is not None else computes]
    return max(usual, min(LARGEST, MOVED * (moved or 0.0)))


def is_right(situation: Situation, computes: str, moved: float | None = None) -> bool:
    """Whether a situation's worst difference is within the tolerance; a refusal, whether it came. Equality that cannot
    be told is right: the other situations have a tolerance."""
    if isinstance(situation, Refusal):
        return situation.refused
    if isinstance(situation, Exact):
        return situation.equal is not False
    return situation.difference is not None and situation.difference <= tolerance(computes, moved)
