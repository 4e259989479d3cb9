"""Tensors as a model's segments hand them out → what calibrators take in, several at a time."""

from __future__ import annotations

import math
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np

from engineworks.backends._cpu import usable_cores
from engineworks.model.calibration.activations import Activation
from engineworks.model.calibration.device_counts import COUNTED, DeviceCounter
from engineworks.model.calibration.histograms import BinCounter
from engineworks.model.calibration.sessions import HOST, SegmentedModel
from engineworks.model.calibration.values import DeviceValues, HostValues, Values

if TYPE_CHECKING:
    from engineworks.model.calibration.sessions import Tensor


class Tally:
    """Counts tensors where they lie; one for a calibration. threads: on the host, 0 for one per core; NumPy lets others
    run while it goes through an array, and every tensor has counts of its own."""

    def __init__(self, bins: int, runner: SegmentedModel, threads: int) -> None:
        self._host = BinCounter(bins)
        place = runner.place
        self._device = DeviceCounter(bins, place.providers, place.device) if place != HOST else None
        self._threads = ThreadPoolExecutor(threads or usable_cores(), thread_name_prefix="calibration")

    def __enter__(self) -> Tally:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._threads.shutdown()

    def add(self, seen: Mapping[str, Activation], tensors: Mapping[str, Tensor]) -> None:
        """Let each tensor's calibrator take it in. Raises what the first of them raises."""

        def one(name: str) -> None:
            seen[name].add(self.values(tensors[name]))

        if self._device or len(tensors) < 2:
            for name in tensors:
                one(name)
        else:
            for _ in self._threads.map(one, tensors):
                pass

    def values(self, tensor: Tensor) -> Values:
        if isinstance(tensor, np.ndarray):
            return HostValues(tensor, self._host)
        dtype = COUNTED.get(tensor.data_type())
        if self._device and dtype:
            return DeviceValues(tensor, dtype, math.prod(tensor.shape()), self._device)
        return HostValues(tensor.numpy(), self._host)
