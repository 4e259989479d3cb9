"""What a session is fed, checked against what its engine takes: names, dtypes, shapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from engineworks.errors import RunError
from engineworks.tensors import TensorSpec

Array = NDArray[np.generic]


def checked_feeds(specs: Sequence[TensorSpec], feeds: Mapping[str, Array]) -> dict[str, Array]:
    """The feeds, contiguous, in the engine's order. Raises `RunError` for names, dtypes or shapes that it does not
    take, and where two dimensions of one name have different lengths."""
    known = {s.name: s for s in specs}
    if missing := sorted(known.keys() - feeds.keys()):
        raise RunError(f"input '{missing[0]}' is missing; the engine takes {', '.join(map(str, specs))}")
    if unknown := sorted(feeds.keys() - known.keys()):
        raise RunError(f"the engine has no input '{unknown[0]}'; it takes {', '.join(map(str, specs))}")
    dims: dict[str, int] = {}
    for name, spec in known.items():
        _check(spec, feeds[name], dims)
    return {name: np.asarray(feeds[name], order="C") for name in known}


def shapes_of(feeds: Mapping[str, Array]) -> str:
    """For messages: 'x [2, 3], mask [2]'."""
    return ", ".join(f"{name} {list(a.shape)}" for name, a in feeds.items())


def _check(spec: TensorSpec, array: Array, dims: dict[str, int]) -> None:
    """dims: lengths of named dimensions seen so far; the same name must have the same length everywhere."""
    if array.dtype.name.replace("float8_", "float8") != spec.dtype:
        raise RunError(f"input '{spec.name}' is {array.dtype.name}, the engine takes {spec.dtype}")
    fits = array.ndim == len(spec.shape) and all(
        dims.setdefault(want, have) == have if isinstance(want, str) else want == have
        for want, have in zip(spec.shape, array.shape, strict=True)
    )
    if not fits:
        named = f" with {', '.join(f'{k} = {v}' for k, v in dims.items())}" if dims else ""
        raise RunError(f"input '{spec.name}' is {list(array.shape)}, the engine takes {spec}{named}")
