"""The values of one tensor in one batch, where the model left them: in the host's memory, or on the device."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from numpy.typing import NDArray

from engineworks.model.calibration.histograms import BLOCK, BinCounter

if TYPE_CHECKING:
    import numpy as np
    import onnxruntime

    from engineworks.model.calibration.device_counts import DeviceCounter


class Values(Protocol):
    """What a calibrator asks of a tensor. dtype: as numpy calls it. size: how many values there are."""

    @property
    def dtype(self) -> str: ...

    @property
    def size(self) -> int: ...

    def extremes(self) -> tuple[float, float]:
        """Smallest and largest value; NaN in both where one is NaN. Only of tensors that are not empty."""

    def counts(self, exponent: int, every: int = 1) -> NDArray[np.int64]:
        """Magnitudes in bins that divide [0, 2^exponent) evenly, int64[bins]; of every so manieth block of `BLOCK`
        values (the last, shorter one left out), or of all where `every` is 1."""


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

    def counts(self, exponent: int, every: int = 1) -> NDArray[np.int64]:
        return self._counter.count(_thinned(self._values, every), exponent)


def _thinned(values: NDArray[Any], every: int) -> NDArray[Any]:
    if every == 1:
        return values
    return values[: values.size // BLOCK * BLOCK].reshape(-1, BLOCK)[::every].reshape(-1)


class DeviceValues:
    """A tensor of ONNX Runtime that stays on its device: extremes and counts alone come back."""

    def __init__(self, tensor: onnxruntime.OrtValue, dtype: str, size: int, counter: DeviceCounter) -> None:
        self._tensor, self._counter = tensor, counter
        self.dtype, self.size = dtype, size

    def extremes(self) -> tuple[float, float]:
        return self._counter.extremes(self._tensor, self.dtype)

    def counts(self, exponent: int, every: int = 1) -> NDArray[np.int64]:
        return self._counter.count(self._tensor, self.dtype, self.size, exponent, every)
