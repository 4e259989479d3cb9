"""Calibration for int8: ranges of activations, collected over samples in constant memory."""

from __future__ import annotations

from engineworks.model.calibration.collect import collect_ranges
from engineworks.model.calibration.ranges import METHODS, Method, Range, Ranges

__all__ = ["METHODS", "Method", "Range", "Ranges", "collect_ranges"]
