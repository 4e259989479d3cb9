"""Tensors as a model's segments hand them out → the values that calibrators take in."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from engineworks.model.calibration.device_counts import COUNTED, DeviceCounter
from engineworks.model.calibration.histograms import BinCounter
from engineworks.model.calibration.sessions import HOST, SegmentedModel
from engineworks.model.calibration.values import DeviceValues, HostValues, Values

if TYPE_CHECKING:
    from engineworks.model.calibration.sessions import Tensor


class Tally:
    """Counts tensors where they lie; one for a calibration, because its buffers and sessions are shared."""

    def __init__(self, bins: int, runner: SegmentedModel) -> None:
        self._host = BinCounter(bins)
        place = runner.place
        self._device = DeviceCounter(bins, place.providers, place.device) if place != HOST else None

    def values(self, tensor: Tensor) -> Values:
        if isinstance(tensor, np.ndarray):
            return HostValues(tensor, self._host)
        dtype = COUNTED.get(tensor.data_type())
        if self._device and dtype:
            return DeviceValues(tensor, dtype, math.prod(tensor.shape()), self._device)
        return HostValues(tensor.numpy(), self._host)
