"""Readings of the device while engines are measured on it, and complaints about them."""

from __future__ import annotations

import time
from typing import Any

from engineworks.engines.backends.base import DeviceWatch, Runner
from engineworks.engines.peers.base import Peer


class DeviceReadings:
    """Takes readings at places (loading, a shape), and evaluates each place by its own readings."""

    def __init__(self, watch: DeviceWatch) -> None:
        self._watch = watch
        self._begin = time.monotonic()
        self._readings: list[dict[str, Any]] = []
        self._last_s: dict[str, float] = {}

    def take(self, at: str, spacing_s: float = 0.0) -> None:
        """Take one reading, unless the last one at this place is less than `spacing_s` old."""
        now = time.monotonic() - self._begin
        if now - self._last_s.get(at, -spacing_s) < spacing_s:
            return
        self._last_s[at] = now
        reading = dict(self._watch.sample())
        if reading:
            self._readings.append({"at": at, "s": round(now, 3), **reading})

    def complaints(self, at: str) -> list[str]:
        """Return why measurements taken there are not to be trusted."""
        return list(self._watch.complaints([r for r in self._readings if r["at"] == at]))

    def to_json(self) -> dict[str, Any]:
        """Return all readings, each with its place and the seconds since the first, and the complaints by place."""
        messages = [f"{at}: {message}" for at in self._last_s for message in self.complaints(at)]
        return {"readings": self._readings, "complaints": messages}


class Device(DeviceReadings):
    """The device of a backend or a peer: its readings, and the memory that is added to what this process has now."""

    def __init__(self, measured: Runner | Peer) -> None:
        self.meter = measured.memory_meter()
        super().__init__(measured.device_watch())
        self.meter.reset()
        self._before_mib = self.meter.peak_mib()

    def added_mib(self, peak_mib: float | None = None) -> float:
        """Return the memory added at this peak, else at the present one."""
        return round((self.meter.peak_mib() if peak_mib is None else peak_mib) - self._before_mib, 2)
