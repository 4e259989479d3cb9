"""Checks a session's feeds against the engine's inputs: names, dtypes, shapes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from engineworks.errors import RunError
from engineworks.host.lazy import Array, Arrays, np
from engineworks.tensors import NARROWED, TensorSpec


def checked_feeds(specs: Sequence[TensorSpec], feeds: Arrays) -> dict[str, Array]:
    """Return the feeds as C-contiguous arrays in the engine's order.

    Each array must have its spec's dtype, rank and fixed lengths; dimensions of one name must have one length. Raises
    `RunError` otherwise.
    """
    known = {s.name: s for s in specs}
    if known.keys() != feeds.keys():
        raise _wrong_names(specs, feeds)
    dims: dict[str, int] = {}
    for name, spec in known.items():
        _check(spec, feeds[name], dims)
    return {name: np.asarray(feeds[name], order="C") for name in known}


def _wrong_names(specs: Sequence[TensorSpec], feeds: Arrays) -> RunError:
    known, takes = {s.name for s in specs}, ", ".join(map(str, specs))
    if missing := sorted(known - feeds.keys()):
        return RunError(f"input '{missing[0]}' is missing; the engine takes {takes}")
    return RunError(f"the engine has no input '{min(feeds.keys() - known)}'; it takes {takes}")


def narrowed_feeds(specs: Sequence[TensorSpec], feeds: Arrays) -> dict[str, Array]:
    """Convert feeds of a wider dtype (`NARROWED`, such as int64 for int32) to the dtype of the engine's input.

    Other feeds, and those of inputs missing in `specs`, are returned unchanged. Shapes stay the same. Raises `RunError`
    for a value outside the range of the engine's dtype.
    """
    wanted = {spec.name: spec.dtype for spec in specs}
    return {
        name: _narrowed(name, array, wanted[name]) if (wanted.get(name), _name(array.dtype)) in NARROWED else array
        for name, array in feeds.items()
    }


def _narrowed(name: str, array: Array, dtype: str) -> Array:
    """Convert the array to `dtype`, same shape. Raises `RunError` for an integer or a float out of range."""
    with np.errstate(over="ignore"):
        narrow: Array = array.astype(dtype)
    if dtype == "float32":
        lost = bool((np.isinf(narrow) & np.isfinite(array)).any())
    else:
        lost = not np.array_equal(narrow, array)
    if lost:
        raise RunError(f"input '{name}' has values that {dtype}, the type of this engine's input, cannot hold")
    return narrow


SHOWN_INPUTS = 6
"""A decoder's cache has one input for each layer, and more."""


def shapes_of(feeds: Arrays) -> str:
    """Return names and shapes for messages: 'x [2, 3], mask [2]', of the first few inputs."""
    shown = [f"{name} {list(a.shape)}" for name, a in feeds.items()]
    more = [f"and {len(shown) - SHOWN_INPUTS} more"] if len(shown) > SHOWN_INPUTS else []
    return ", ".join(shown[:SHOWN_INPUTS] + more)


def _check(spec: TensorSpec, array: Array, dims: dict[str, int]) -> None:
    """Check one array. dims: lengths of the named dimensions seen so far; a name has one length in all inputs."""
    if _name(array.dtype) != spec.dtype:
        raise RunError(f"input '{spec.name}' is {array.dtype.name}, the engine takes {spec.dtype}")
    fits = array.ndim == len(spec.shape) and all(
        dims.setdefault(want, have) == have if isinstance(want, str) else want == have
        for want, have in zip(spec.shape, array.shape, strict=True)
    )
    if not fits:
        named = f" with {', '.join(f'{k} = {v}' for k, v in dims.items())}" if dims else ""
        raise RunError(f"input '{spec.name}' is {list(array.shape)}, the engine takes {spec}{named}")


@cache  # NumPy makes the name anew each time: a third of what a run at batch 1 costs in Python
def _name(dtype: np.dtype[Any]) -> str:
    """Return a dtype's name in this project."""
    return dtype.name.replace("float8_", "float8")
