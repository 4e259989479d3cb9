"""The calibration report: the quality of the ranges over all tensors, the samples' statistics, and warnings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from engineworks.model.calibrate.inputs import InputStatistics
from engineworks.typed_json import Count, Document, Report, Size


@dataclass(frozen=True)
class Spread(Document):
    """A share over all tensors: its mean, and the tensors where it is largest."""

    mean: Size
    largest: Mapping[str, float]


@dataclass(frozen=True)
class CalibrationData(Document):
    """sha256: of the data; samples: in use, of so many."""

    sha256: str
    samples: Count
    of: Count


@dataclass(frozen=True)
class CalibrationReport(Report):
    """samples: that the ranges come from. tensors: how many have a range. constants, empty: tensors with one value, or
    none. saturated: share of the values beyond the range; unused: of the codes; moved: by the last samples."""

    FILE = "report.json"

    method: str
    samples: Count
    provider: str
    tensors: Count
    constants: tuple[str, ...]
    empty: tuple[str, ...]
    saturated: Spread
    unused: Spread
    moved: Spread
    data: CalibrationData
    warnings: tuple[str, ...]
    inputs: Mapping[str, InputStatistics]
