"""Passes tensors of a model's segments to calibrators while the next segment runs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from engineworks.model.calibrate.activations import Activation, Settings
from engineworks.model.calibrate.device_counts import COUNTED, DeviceCounter
from engineworks.model.calibrate.histograms import BinCounter
from engineworks.model.calibrate.sessions import HOST, SegmentedModel
from engineworks.model.calibrate.values import AllValues, DeviceValues, HostValues

if TYPE_CHECKING:
    from engineworks.model.calibrate.sessions import Tensor


class Tally:
    """Counts tensors where they lie: on a device at once, on the host in its own thread, one segment behind the model.

    So at most two segments' tensors are in memory. Satisfies `collect.Passes`.
    """

    def __init__(self, runner: SegmentedModel, settings: Settings) -> None:
        self.inputs, self.provider = runner.inputs, runner.provider
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
        """Let each calibrator take in its tensor of this batch. feeds: by input name, with the shapes and dtypes of the
        model's inputs.

        Raises as `SegmentedModel.run`, and what a calibrator raises, now or for earlier tensors.
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

    def _values(self, tensor: Tensor) -> AllValues:
        if isinstance(tensor, np.ndarray):
            return HostValues(tensor, self._host)
        dtype = COUNTED.get(tensor.data_type())
        if self._device and dtype:
            return DeviceValues(tensor, dtype, math.prod(tensor.shape()), self._device)
        return HostValues(tensor.numpy(), self._host)
