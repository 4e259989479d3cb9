"""Calibration: run the folded fp32 model over samples and find the range that int8 covers in each tensor.

Memory does not grow with the number of samples: every activation is counted into a histogram and freed at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from engineworks.errors import SamplesError
from engineworks.host.memory import settle_heap
from engineworks.model.calibrate.activations import Activation, Settings
from engineworks.model.calibrate.device_counts import COUNTED, DeviceCounter
from engineworks.model.calibrate.histograms import BinCounter
from engineworks.model.calibrate.ranges import Method, Ranges
from engineworks.model.calibrate.reductions import ReducedModel, open_reductions
from engineworks.model.calibrate.runtime import CPU_PROVIDER, Device, choose_providers
from engineworks.model.calibrate.sessions import HOST, SegmentedModel, open_segments
from engineworks.model.calibrate.values import DeviceValues, HostValues

if TYPE_CHECKING:
    from engineworks.model.calibrate.sessions import Tensor


Batch = Mapping[str, NDArray[Any]]

EARLY = 0.8
"""Share of the samples after which the ranges are first read: they should not move much any more."""

SAMPLED_BATCHES, SAMPLED_BATCHES_EVERY = 8, 16
"""A moving average samples values of this many batches, then of one in this many, to estimate how many its range clips.
A histogram costs as much as both extremes do."""


class Tally:
    """Counts tensors where they lie: on a device at once, on the host in its own thread, one segment behind the model.

    So at most two segments' tensors are in memory.
    """

    def __init__(self, runner: SegmentedModel, settings: Settings) -> None:
        self.inputs, self.provider = runner.inputs, runner.provider  # ONNX Runtime's execution provider
        self._runner, self._settings = runner, settings
        self._host = BinCounter(bins := settings.counted_bins)
        place = runner.place
        self._device = DeviceCounter(bins, place.providers, place.device) if place != HOST else None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="calibration")
        self._counting: Future[None] | None = None

    def close(self) -> None:
        """Wait for the thread and end it."""
        self._thread.shutdown()

    def run(self, feeds: Mapping[str, NDArray[Any]], activations: Mapping[str, Activation], *, look: bool) -> None:
        """Run one batch. look: whether a moving average samples it. feeds: by input name, with the shapes and dtypes of
        the model's inputs.

        Raises `SamplesError` if the names of `feeds` are not the model's inputs, and `CalibrationError` with ONNX
        Runtime's message if the model does not run on them. Errors of a calibrator may come only at the next batch.
        """
        self._runner.run(feeds, partial(self._take, activations, look))

    def finish(self) -> None:
        """Wait until everything added is counted. Raises what a calibrator raised."""
        counting, self._counting = self._counting, None
        if counting:
            counting.result()

    def _take(self, activations: Mapping[str, Activation], look: bool, tensors: Mapping[str, Tensor]) -> None:
        self.finish()
        if self._device:
            self._add(activations, look, tensors)
        elif tensors:
            self._counting = self._thread.submit(self._add, activations, look, tensors)

    def _add(self, activations: Mapping[str, Activation], look: bool, tensors: Mapping[str, Tensor]) -> None:
        for name, tensor in tensors.items():
            values = self._values(tensor)
            sampled = values.sampled_counts if look and self._settings.samples else None
            activations[name].add(values, values.counts if self._settings.counts_all else sampled)

    def _values(self, tensor: Tensor) -> HostValues | DeviceValues:
        if isinstance(tensor, np.ndarray):
            return HostValues(tensor, self._host)
        dtype = COUNTED.get(tensor.data_type())
        if self._device and dtype:
            return DeviceValues(tensor, dtype, math.prod(tensor.shape()), self._device)
        return HostValues(tensor.numpy(), self._host)


Passes = Tally | ReducedModel
"""Runs a model on batches and passes its tensors to calibrators."""


def collect_ranges(
    model: Path,
    batches: Callable[[], Iterable[Batch]],
    tensors: Sequence[str],
    *,
    method: Method,
    percentile: float = 99.99,
    averaging: float | None = None,
    bins: int = 8192,
    threads: int = 0,
    device: Device = "auto",
    samples: int | None = None,
    axes: Mapping[str, int | None] | None = None,
    progress: Callable[[int], None] | None = None,
) -> Ranges:
    """Collect the ranges of `tensors` (activations or inputs of the ONNX file) over all `batches`.

    One pass is enough for every method, because histograms grow with their values.

    batches: called once; each batch holds an array for every input of the model, of its dtype; shapes may differ from
    batch to batch. percentile: of |x|, in percent, for method "percentile". averaging: weight of a new batch for
    "moving_average", None for the mean over all batches. bins: of each histogram, a power of two; at least half of them
    lie below the largest magnitude. threads: of ONNX Runtime, 0 for one per core. device: where the model runs and
    values are counted, "auto" for a GPU if ONNX Runtime has one. samples: the expected number, so that the ranges after
    `EARLY` of them are recorded. axes: where each input has its samples, None where a batch is one sample of it; by
    default axis 0 of the first input that has axes. progress: called after each batch with the number of samples so
    far.

    Raises `SamplesError` for no samples or samples that do not fit the model, `CalibrationError` for a tensor that the
    model lacks, that is no float or that holds NaN or infinity.
    """
    settings = Settings(method, percentile, averaging, bins)
    settings.check()
    settle_heap()
    activations = {name: Activation(name, settings) for name in tensors}
    with closing(_open(model, tensors, settings, threads, device)) as passes:
        sample_count, early = _run_all(passes, batches(), activations, samples, progress, axes)
    if not sample_count:
        raise SamplesError("there are no calibration samples", hint="check the recipe's data.calibration")
    ranges = {
        name: activation.range(early.get(name)) for name, activation in activations.items() if not activation.empty
    }
    empty = tuple(name for name, activation in activations.items() if activation.empty)
    return Ranges(method, sample_count, ranges, settings.parameters, passes.provider, empty)


def _open(model: Path, tensors: Sequence[str], settings: Settings, threads: int, device: Device) -> Passes:
    """Open the model. If extremes are enough the graph finds them itself; other methods, and GPUs, read the tensors."""
    if not settings.counts_all and choose_providers(device) == [CPU_PROVIDER]:
        reduced = open_reductions(model, tensors, threads, settings.counted_bins, sample=settings.samples)
        if reduced:
            return reduced
    return Tally(open_segments(model, tensors, threads, device), settings)


def _run_all(
    passes: Passes,
    batches: Iterable[Batch],
    activations: Mapping[str, Activation],
    samples: int | None,
    progress: Callable[[int], None] | None,
    axes: Mapping[str, int | None] | None = None,
) -> tuple[int, dict[str, float]]:
    """Return the number of samples, and amax by tensor after `EARLY` of them (empty if `samples` is unknown)."""
    early: dict[str, float] = {}
    at_axis = axes if axes is not None else {spec.name: 0 for spec in passes.inputs if spec.shape}
    counted, axis = next(((name, axis) for name, axis in at_axis.items() if axis is not None), ("", 0))
    sample_count = 0
    for at, batch in enumerate(batches, 1):
        if samples and not early and EARLY * samples <= sample_count:
            passes.finish()
            early = {name: activation.amax for name, activation in activations.items()}
        feeds = {name: np.asarray(value) for name, value in batch.items()}
        passes.run(feeds, activations, look=at <= SAMPLED_BATCHES or at % SAMPLED_BATCHES_EVERY == 0)
        sample_count += feeds[counted].shape[axis] if counted else 1
        if progress:
            progress(sample_count)
    passes.finish()
    return sample_count, early
