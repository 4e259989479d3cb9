"""Calibration: run the folded fp32 model over samples and find the range that int8 is to cover in each tensor.

Memory does not grow with the number of samples: every activation is counted into a histogram and freed at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engineworks.errors import CalibrationError, SamplesError
from engineworks.model.calibration.histograms import BinCounter, Histogram
from engineworks.model.calibration.ranges import METHODS, Method, Range, Ranges
from engineworks.model.calibration.sessions import open_segments
from engineworks.model.calibration.thresholds import entropy_bin, percentile_bin

Batch = Mapping[str, NDArray[Any]]


def collect_ranges(
    model: Path,
    batches: Callable[[], Iterable[Batch]],
    tensors: Sequence[str],
    *,
    method: Method,
    percentile: float = 99.99,
    bins: int = 8192,
    threads: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Ranges:
    """Ranges of `tensors` (activations or inputs of the ONNX file) over all `batches`, in one pass.

    batches: called once; each batch holds an array for every input of the model, shapes may differ from batch to
    batch. A batch counts as many samples as its first input that has axes is long in axis 0.
    percentile: of |x|, in per cent, for method "percentile". bins: of each histogram, a power of two; at least half
    of them lie below the largest magnitude. threads: of ONNX Runtime, 0 for one per core. progress: called after each
    batch with the number of samples so far.
    Raises `SamplesError` for samples that do not fit the model or for none, `CalibrationError` for a tensor that the
    model does not have, that is no float or that holds NaN or infinity.
    """
    _check_parameters(method, percentile, bins)
    runner = open_segments(model, tensors, threads)
    counter = BinCounter(bins)
    seen = {name: _Activation(name, None if method == "minmax" else Histogram(counter)) for name in tensors}
    axis0 = next((spec.name for spec in runner.inputs if spec.shape), None)
    sample_count = 0
    for batch in batches():
        feeds = {name: np.asarray(value) for name, value in batch.items()}
        runner.run(feeds, lambda name, value: seen[name].add(value))
        sample_count += len(feeds[axis0]) if axis0 else 1
        if progress:
            progress(sample_count)
    if not sample_count:
        raise SamplesError("there are no calibration samples", hint="check the recipe's data.calibration")
    ranges = {name: activation.range(method, percentile) for name, activation in seen.items()}
    return Ranges(method, sample_count, ranges, _parameters(method, percentile, bins))


class _Activation:
    """What was seen of one tensor so far."""

    def __init__(self, name: str, histogram: Histogram | None) -> None:
        self._name = name
        self._histogram = histogram
        self._minimum, self._maximum = math.inf, -math.inf
        self._values = 0

    def add(self, array: NDArray[Any]) -> None:
        if array.dtype.kind != "f":
            raise CalibrationError(f"activation '{self._name}' is {array.dtype}, not a float", hint="leave it out")
        if not array.size:
            return
        values = array.reshape(-1)
        minimum, maximum = float(values.min()), float(values.max())  # NaN wins in both
        if not (math.isfinite(minimum) and math.isfinite(maximum)):
            what = "NaN" if math.isnan(minimum) else "infinity"
            raise CalibrationError(
                f"activation '{self._name}' holds {what} in the fp32 model",
                hint="check the samples and their preprocessing, then the nodes before it",
            )
        self._minimum, self._maximum = min(self._minimum, minimum), max(self._maximum, maximum)
        self._values += values.size
        if self._histogram:
            self._histogram.add(values, max(-minimum, maximum))

    def range(self, method: Method, percentile: float) -> Range:
        if not self._values:
            raise CalibrationError(
                f"activation '{self._name}' was empty in every sample", hint="keep the nodes that read it unquantized"
            )
        largest = max(-self._minimum, self._maximum)
        amax, saturated = largest, 0.0
        if self._histogram and largest > 0:
            counts = self._histogram.counts
            bins = entropy_bin(counts) if method == "entropy" else percentile_bin(counts, percentile)
            amax, saturated = min(largest, bins * self._histogram.bin_width), self._histogram.beyond(bins)
        return Range(amax, self._minimum, self._maximum, saturated, self._values)


def _check_parameters(method: str, percentile: float, bins: int) -> None:
    if method not in METHODS:
        raise CalibrationError(f"unknown calibration method '{method}'", hint=f"choose one of {', '.join(METHODS)}")
    if not 0 < percentile <= 100:
        raise CalibrationError(f"calibration percentile {percentile} is not in (0, 100]", hint="99.99 is usual")
    if bins < 256 or bins & (bins - 1):
        raise CalibrationError(f"calibration with {bins} bins", hint="choose a power of two, 256 at least")


def _parameters(method: Method, percentile: float, bins: int) -> dict[str, float]:
    if method == "minmax":
        return {}
    return {"percentile": percentile, "bins": bins} if method == "percentile" else {"bins": bins}
