"""Observations of one tensor, and the range that each method makes from them. One pass serves every method. A histogram
of |x| gives the magnitude that int8 covers, which trades clipping against rounding."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engineworks.errors import CalibrationError
from engineworks.model.calibrate.histograms import Histogram, merge_bins
from engineworks.model.calibrate.ranges import INT8_MAX, METHODS, Method, Range
from engineworks.model.calibrate.values import Counts, Values

LEVELS = 128
"""Number of magnitudes that symmetric int8 distinguishes."""

ENTROPY_BINS = 2048
"""Bins of the search for the minimum divergence, as in TensorRT: finer ones follow the noise of few samples."""

MSE_CANDIDATES = 2048
"""Number of ranges that the search for the minimum squared error tries."""

MAX_CLIPPED = 1e-3
"""Maximum fraction of values that the search may clip. Divergence ignores how far a value moves. Where many values are
equal (a background, padding, zeros behind a bias) it would clip at that spike, a quarter of all values."""


def percentile_bin(counts: NDArray[np.int64], percentile: float) -> int:
    """Return the number of bins of `counts`, int64[bins], from 0 up, that hold at least `percentile`% of all values.

    It is 0 for an empty histogram.
    """
    total = int(counts.sum())
    if not total:
        return 0
    return int(np.searchsorted(np.cumsum(counts), total * (percentile / 100.0))) + 1


def entropy_bin(counts: NDArray[np.int64]) -> int:
    """Return the number of bins of `counts`, int64[bins], from 0 up, to which clipping loses the least information.

    For each i ≥ 128, P is the histogram's first i bins with everything beyond added to the last one. Q is the same bins
    spread evenly over 128 levels and, within a level, over the bins that are not empty. The i with the minimum
    Kullback-Leibler divergence of Q from P is chosen, the largest one of equals.

    After S. Migacz, "8-bit Inference with TensorRT", GTC 2017 (s7310), pages 38-40, with even levels and the bin of
    zeros levelled to its neighbour as in NVIDIA's pytorch-quantization, calib/histogram.py, `_compute_amax_entropy`;
    `MAX_CLIPPED` is added here.
    """
    factor = max(1, counts.size // ENTROPY_BINS)
    coarse = merge_bins(counts, factor)
    used = int(np.flatnonzero(coarse)[-1]) + 1 if coarse.any() else 0
    if used <= LEVELS:
        return used * factor
    bins = coarse[:used].astype(np.float64)
    bins[0] = bins[1]
    divergence = _divergences(bins)
    clipped = 1 - np.cumsum(coarse[:used]) / coarse.sum()
    divergence[clipped[LEVELS - 1 :] > MAX_CLIPPED] = np.inf
    best = np.flatnonzero(divergence <= divergence.min() + 1e-12)[-1]
    return (LEVELS + int(best)) * factor


def mse_bin(counts: NDArray[np.int64]) -> int:
    """Return the number of bins of `counts`, int64[bins], to which clipping and rounding to int8 has the minimum
    squared error.

    For each candidate a, every bin's centre x is quantized with the step s = a / 127 and E(a) = Σ counts (x - Q(x))².
    The a of the minimum E is chosen, the largest one of equals.

    As NVIDIA's pytorch-quantization and ModelOpt, calib/histogram.py, `_compute_amax_mse`, from bin 128 on. R. Banner
    et al., "Post training 4-bit quantization of convolutional networks for rapid-deployment" (arXiv:1810.05723),
    section 2, minimizes the same E in closed form. One pass over the data is enough: a bin is at most 1/16 of the step
    of a range from bin 512 on.
    """
    used = int(np.flatnonzero(counts)[-1]) + 1 if counts.any() else 0
    if used <= LEVELS:
        return used
    candidates = np.unique(np.append(np.arange(LEVELS, used, max(1, counts.size // MSE_CANDIDATES)), used))
    errors = _squared_errors(counts[:used], candidates)
    best = np.flatnonzero(errors <= errors.min() * (1 + 1e-12))[-1]
    return int(candidates[best])


def _squared_errors(counts: NDArray[np.int64], candidates: NDArray[np.intp]) -> NDArray[np.float64]:
    """Return E(a) in squared bins for each candidate, from running sums over the bins of each of its 128 levels.

    counts: int64[bins]; candidates: intp[n]; result: float64[n]. Level l holds the centres x with round(x / s) = l;
    there Σ c (x - l s)² = Σ c x² - 2 l s Σ c x + (l s)² Σ c.
    """
    weights = counts.astype(np.float64)
    centres = np.arange(counts.size) + 0.5
    moments = np.stack([_running_sum(weights * centres**power) for power in range(3)])
    step = candidates[:, None] / (LEVELS - 1)
    edges = np.ceil((np.arange(1, LEVELS) - 0.5) * step - 0.5).astype(np.intp)
    full = np.full((candidates.size, 1), counts.size)
    bounds = np.concatenate((np.zeros_like(full), np.minimum(edges, counts.size), full), axis=1)
    zeroth, first, second = np.diff(moments[:, bounds], axis=2)
    level = np.arange(LEVELS) * step
    errors: NDArray[np.float64] = (second - 2 * level * first + level**2 * zeroth).sum(axis=1)
    return np.maximum(errors, 0)  # rounding may leave zero errors slightly negative


def _divergences(bins: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return KL(P‖Q) in nats for each i from 128 to len(bins), all from running sums: 128 terms for each i instead of
    i.

    bins: float64[n]; result: float64[n - 127]. Within a level every non-empty bin has the same Q, so Σ P log Q over the
    level is its count times log Q.
    """
    lengths = np.arange(LEVELS, bins.size + 1)
    edges = lengths[:, None] * np.arange(LEVELS + 1) // LEVELS
    counts = np.diff(_running_sum(bins)[edges], axis=1)
    filled = np.diff(_running_sum(bins > 0)[edges], axis=1)
    log_q = _log(counts / np.maximum(filled, 1))
    kept = _running_sum(bins)[lengths]
    total = bins.sum()
    last, beyond = bins[lengths - 1], total - kept
    p_log_p = _running_sum(bins * _log(bins))[lengths - 1] + (last + beyond) * _log(last + beyond)
    p_log_q = (counts * log_q).sum(axis=1) + beyond * log_q[:, -1]
    divergence: NDArray[np.float64] = (p_log_p - p_log_q) / total + _log(kept) - np.log(total)
    divergence[(last == 0) & (beyond > 0)] = np.inf  # P has mass where Q has none
    return divergence


def _running_sum(values: NDArray[np.float64] | NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the sums of the first 0, 1, …, n values: float64[n + 1] of values [n]."""
    return np.concatenate(([0.0], np.cumsum(values, dtype=np.float64)))


def _log(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the natural logarithm, float64 of any shape, with log 0 = 0, for terms 0 · log 0."""
    return np.log(np.where(values > 0, values, 1.0))


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
