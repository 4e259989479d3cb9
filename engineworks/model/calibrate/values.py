"""The values of one tensor in one batch: in the host's memory, on the device, or already reduced."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from engineworks.host.lazy import ort
from engineworks.model.calibrate.histograms import BLOCK, BinCounter

if TYPE_CHECKING:
    from engineworks.model.calibrate.device_counts import DeviceCounter

Same = Callable[[NDArray[Any]], NDArray[Any]]
"""Makes a tensor's values from another's, one by one and monotonically: a larger value never becomes the smaller."""

LARGE = 1 << 14
"""Number of values above which a sample of a tensor is enough."""

SAMPLED_EVERY = 127
"""A sample holds one of this many values, or blocks of values. A prime, so that no column or channel is left out."""


Counts = Callable[[int], NDArray[np.int64]]
"""exponent → magnitudes in bins that divide [0, 2^exponent) evenly, int64[bins]."""


class Values(Protocol):
    """A tensor of any shape. dtype: its numpy name. size: the number of values."""

    @property
    def dtype(self) -> str: ...

    @property
    def size(self) -> int: ...

    def extremes(self) -> tuple[float, float]:
        """Return the smallest and largest value; NaN in both if one is NaN. Not for empty tensors."""

    def sampled_counts(self, exponent: int) -> NDArray[np.int64]:
        """Return `Counts` of all values or, for a large tensor, `SAMPLED_EVERY` times those of a sample."""


def sampled_every(size: int) -> int:
    return SAMPLED_EVERY if size > LARGE else 1


class HostValues:
    """An array in the host's memory."""

    def __init__(self, array: NDArray[Any], counter: BinCounter) -> None:
        self._values, self._counter = array.reshape(-1), counter

    @property
    def dtype(self) -> str:
        return str(self._values.dtype)

    @property
    def size(self) -> int:
        return self._values.size

    def extremes(self) -> tuple[float, float]:
        return float(self._values.min()), float(self._values.max())  # NaN wins in both

    def counts(self, exponent: int) -> NDArray[np.int64]:
        return self._counter.count(self._values, exponent)

    def sampled_counts(self, exponent: int) -> NDArray[np.int64]:
        every = sampled_every(self.size)
        return self._counter.count(_thinned(self._values, every), exponent) * every


def _thinned(values: NDArray[Any], every: int) -> NDArray[Any]:
    if every == 1:
        return values
    return values[: values.size // BLOCK * BLOCK].reshape(-1, BLOCK)[::every].reshape(-1)


@dataclass(frozen=True)
class ReducedValues:
    """A model's own reductions of a float32 tensor, f32[] each, and its sample, f32[n]."""

    size: int
    least: NDArray[np.float32]
    most: NDArray[np.float32]
    total: NDArray[np.float32]
    sample: NDArray[np.float32]
    counter: BinCounter
    dtype: str = "float32"

    def extremes(self) -> tuple[float, float]:
        """Return the extremes. ONNX Runtime's extremes skip NaN, its sum does not. A sum of infinities may be NaN too,
        but the extremes show those."""
        least, most = float(self.least), float(self.most)
        if math.isnan(self.total) and math.isfinite(least) and math.isfinite(most):
            return math.nan, math.nan
        return least, most

    def sampled_counts(self, exponent: int) -> NDArray[np.int64]:
        return self.counter.count(self.sample, exponent) * sampled_every(self.size)

    def through(self, same: Same) -> ReducedValues:
        """Return the values of a tensor that follows from this one."""
        made = [np.asarray(same(array)) for array in (self.least, self.most, self.sample)]
        return replace(self, least=made[0], most=made[1], sample=made[2])


class DeviceValues:
    """A tensor of ONNX Runtime that stays on its device: only extremes and counts come back."""

    def __init__(self, tensor: ort.OrtValue, dtype: str, size: int, counter: DeviceCounter) -> None:
        self._tensor, self._counter = tensor, counter
        self.dtype, self.size = dtype, size

    def extremes(self) -> tuple[float, float]:
        return self._counter.extremes(self._tensor, self.dtype)

    def counts(self, exponent: int) -> NDArray[np.int64]:
        return self._counter.count(self._tensor, self.dtype, self.size, exponent)

    def sampled_counts(self, exponent: int) -> NDArray[np.int64]:
        every = sampled_every(self.size)
        return self._counter.count(self._tensor, self.dtype, self.size, exponent, every) * every
