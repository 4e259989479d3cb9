"""Streaming histograms of |x|: constant memory, exact counts, one pass over the data.

The bins divide [0, 2^e) evenly. A value beyond 2^e doubles the range, which merges neighbouring bins: no count is ever
split, so the result does not depend on the order or the size of the batches.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

CHUNK = 1 << 15
"""Elements counted at a time: source, indices and NumPy's copy of these (16 bytes each) stay in a core's L2 cache."""

BLOCK = 16
"""Values in a line of the cache: sampling skips whole lines, because a line is read as a whole."""

MIN_EXPONENT = -100
"""Ranges do not get smaller than 2^-100: the factor from value to bin must stay finite in float32."""


class BinCounter:
    """Counts magnitudes into bins, a chunk at a time through its buffer. Not thread-safe."""

    def __init__(self, bins: int) -> None:
        if bins < 2 or bins & (bins - 1):
            raise ValueError(f"bins must be a power of two, not {bins}")
        self.bins = bins
        self._indices = np.empty(CHUNK, np.int32)  # AVX2 converts to int32 alone: five times as fast as to int64

    def count(self, values: NDArray[Any], exponent: int) -> NDArray[np.int64]:
        """Return the counts per bin, int64[bins], of a flat float array whose magnitudes are all below 2^exponent.

        The factor is a power of two, so that scaling is exact in binary floating point and equals comparing with the
        bins' edges.
        """
        factor = np.float32(math.ldexp(self.bins, -exponent))
        counts = np.zeros(self.bins, np.int64)
        for start in range(0, values.size, CHUNK):
            chunk = values[start : start + CHUNK]
            indices = self._indices[: chunk.size]
            np.multiply(chunk, factor, out=indices, dtype=np.float32, casting="unsafe")
            np.abs(indices, out=indices)
            counts += np.bincount(indices, minlength=self.bins)
        return counts


class Histogram:
    """Histogram of the magnitudes of one tensor over all samples; its range grows by powers of two."""

    def __init__(self, bins: int) -> None:
        self.exponent = MIN_EXPONENT
        self.counts = np.zeros(bins, np.int64)

    @property
    def bin_width(self) -> float:
        return math.ldexp(1.0, self.exponent) / self.counts.size

    def add(self, count: Callable[[int], NDArray[np.int64]], amax: float) -> None:
        """Add the counts that `count` returns for an exponent; `amax`, finite, is their largest magnitude."""
        self._cover(amax)
        self.counts += count(self.exponent)

    def _cover(self, amax: float) -> None:
        exponent = max(math.frexp(amax)[1], MIN_EXPONENT)  # amax < 2^exponent, also where amax is a power of two
        merged = exponent - self.exponent
        if merged <= 0:
            return
        self.exponent = exponent
        self.counts = merge_bins(self.counts, 1 << min(merged, self.counts.size.bit_length() - 1))

    def above(self, amax: float) -> float:
        """Return the fraction of all values with a magnitude above `amax`, to within the bin that holds it."""
        total = int(self.counts.sum())
        bins = math.ceil(amax / self.bin_width)
        return int(self.counts[bins:].sum()) / total if total else 0.0

    def rounded(self, step: float, levels: int) -> NDArray[np.bool_]:
        """Return which of the multiples 0 … `levels` of `step` a magnitude rounds to, bool[levels + 1].

        Larger values count to the last one. A bin counts for every multiple that its values may round to.
        """
        filled = np.flatnonzero(self.counts)
        first = np.minimum(np.rint(filled * self.bin_width / step), levels).astype(np.intp)
        last = np.minimum(np.rint((filled + 1) * self.bin_width / step), levels).astype(np.intp)
        edges = np.zeros(levels + 2, np.intp)
        np.add.at(edges, first, 1)
        np.add.at(edges, last + 1, -1)
        reached: NDArray[np.bool_] = np.cumsum(edges)[: levels + 1] > 0
        return reached


def merge_bins(counts: NDArray[np.int64], factor: int) -> NDArray[np.int64]:
    """Return the histogram, int64[bins], over a range `factor` (a power of two ≤ bins) times as wide."""
    merged = np.zeros_like(counts)
    merged[: counts.size // factor] = counts.reshape(-1, factor).sum(axis=1)
    return merged
