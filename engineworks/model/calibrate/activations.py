"""Observations of one tensor, and the range that each method makes from them. One pass serves every method."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engineworks.errors import CalibrationError
from engineworks.model.calibrate.histograms import Histogram
from engineworks.model.calibrate.ranges import INT8_MAX, METHODS, Method, Range
from engineworks.model.calibrate.thresholds import entropy_bin, mse_bin, percentile_bin
from engineworks.model.calibrate.values import Counts, Values

SAMPLE_BINS = 1024
"""Bins for the sample of a moving average: it gives only one share, and bins cost more time than values."""

_CODES = 2 * INT8_MAX + 1


@dataclass(frozen=True)
class Settings:
    """Selects how ranges are chosen.

    percentile: of |x|, in percent. averaging: weight of a new batch in a moving average, None for the mean over all
    batches. bins: of each histogram, a power of two.
    """

    method: Method
    percentile: float = 99.99
    averaging: float | None = None
    bins: int = 8192

    def check(self) -> None:
        """Raise `CalibrationError` for settings that make no sense."""
        if self.method not in METHODS:
            hint = f"choose one of {', '.join(METHODS)}"
            raise CalibrationError(f"unknown calibration method '{self.method}'", hint=hint)
        if not 0 < self.percentile <= 100:
            raise CalibrationError(
                f"calibration percentile {self.percentile} is not in (0, 100]", hint="99.99 is usual"
            )
        if self.averaging is not None and not 0 < self.averaging <= 1:
            raise CalibrationError(f"calibration averaging {self.averaging} is not in (0, 1]", hint="0.01 is usual")
        if self.bins < 256 or self.bins & (self.bins - 1):
            raise CalibrationError(f"calibration with {self.bins} bins", hint="choose a power of two, 256 at least")

    @property
    def counts_all(self) -> bool:
        """Whether a histogram counts every value."""
        return self.method in _BINS

    @property
    def samples(self) -> bool:
        """Whether a histogram counts some values, to estimate how many a range clips that is no quantile of them."""
        return self.method == "moving_average"

    @property
    def counted_bins(self) -> int:
        """Number of bins in which values are counted."""
        return self.bins if self.counts_all else min(self.bins, SAMPLE_BINS)

    @property
    def parameters(self) -> dict[str, float]:
        """The parameters that the method reads, for the artifact."""
        read = {"percentile": ("percentile", "bins"), "moving_average": ("averaging",), "minmax": ()}
        values = {name: getattr(self, name) for name in read.get(self.method, ("bins",))}
        return {name: value for name, value in values.items() if value is not None}


class Activation:
    """Observations of one tensor: its extremes, and a histogram of counted values."""

    def __init__(self, name: str, settings: Settings) -> None:
        self._name, self._settings = name, settings
        self._histogram = Histogram(settings.counted_bins)
        self._average = _Average(settings.averaging) if settings.samples else None
        self._minimum, self._maximum = math.inf, -math.inf
        self._values = 0

    def add(self, values: Values, count: Counts | None) -> None:
        """Take in the tensor of one batch. count: counts the values for its histogram, None for none.

        Raises `CalibrationError` if the tensor is no float or not finite.
        """
        if np.dtype(values.dtype).kind != "f":
            raise CalibrationError(f"activation '{self._name}' is {values.dtype}, not a float", hint="leave it out")
        if not values.size:
            return
        minimum, maximum = values.extremes()
        if not (math.isfinite(minimum) and math.isfinite(maximum)):
            what = "NaN" if math.isnan(minimum) else "infinity"
            raise CalibrationError(
                f"activation '{self._name}' holds {what} in the fp32 model",
                hint="check the samples and their preprocessing, then the nodes before it",
            )
        self._minimum, self._maximum = min(self._minimum, minimum), max(self._maximum, maximum)
        self._values += values.size
        if self._average:
            self._average.add(minimum, maximum)
        if count:
            self._histogram.add(count, max(-minimum, maximum))

    @property
    def amax(self) -> float:
        """The magnitude to cover by the method; 0 without values."""
        largest = max(-self._minimum, self._maximum, 0.0)
        if self._average:
            return min(largest, self._average.amax)
        if self._settings.counts_all and largest > 0:
            bins = _BINS[self._settings.method](self._histogram.counts, self._settings.percentile)
            return min(largest, bins * self._histogram.bin_width)
        return largest

    @property
    def empty(self) -> bool:
        """Whether the tensor held no value so far."""
        return not self._values

    def range(self, amax_early: float | None = None) -> Range:
        """Return the range of all values so far; there must be some."""
        amax = self.amax
        reach = amax * (1 + 0.5 / INT8_MAX)  # values that round to the last code are not clipped
        clips = reach < max(-self._minimum, self._maximum)
        saturated = self._histogram.above(reach) if clips else 0.0
        return Range(amax, self._minimum, self._maximum, saturated, self._values, self._unused(amax), amax_early)

    def _unused(self, amax: float) -> float:
        """Return the fraction of the codes -127 … 127 that no value rounds to."""
        if not amax:
            return 1 - 1 / _CODES
        codes = np.arange(-INT8_MAX, INT8_MAX + 1)
        scale = amax / INT8_MAX
        reached = (codes >= round(max(self._minimum, -amax) / scale)) & (
            codes <= round(min(self._maximum, amax) / scale)
        )
        if self._settings.counts_all:
            reached &= self._histogram.rounded(scale, INT8_MAX)[np.abs(codes)]
        return 1 - int(reached.sum()) / _CODES


class _Average:
    """The running mean of the batches' extremes.

    Without a constant it is the plain mean over all batches, as in ONNX Runtime's MinMaxCalibrater with
    `moving_average` for data passed at once. With constant c: m ← m + c (x - m), beginning with the first batch: the
    exponential moving average of B. Jacob et al. (arXiv:1712.05877), section 3.1, as in PyTorch's
    MovingAverageMinMaxObserver and in ONNX Runtime's `merge_range`. A batch counts once, whatever its size.
    """

    def __init__(self, constant: float | None) -> None:
        self._constant = constant
        self._batches = 0
        self._minimum = self._maximum = 0.0

    def add(self, minimum: float, maximum: float) -> None:
        self._batches += 1
        weight = 1.0 if self._batches == 1 else self._constant or 1 / self._batches
        self._minimum += weight * (minimum - self._minimum)
        self._maximum += weight * (maximum - self._maximum)

    @property
    def amax(self) -> float:
        return max(-self._minimum, self._maximum)


_BINS: Mapping[Method, Callable[[NDArray[np.int64], float], int]] = {
    "entropy": lambda counts, _: entropy_bin(counts),
    "mse": lambda counts, _: mse_bin(counts),
    "percentile": percentile_bin,
}
"""Methods that read a histogram: how many of its bins to cover."""
