"""Activation ranges: the observations of each tensor, and their JSON form."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self, get_args

from pydantic import ConfigDict

from engineworks.errors import CalibrationError
from engineworks.typed_json import Record, parse

Method = Literal["minmax", "entropy", "percentile", "mse", "moving_average"]
METHODS: tuple[Method, ...] = get_args(Method)

INT8_MAX = 127
"""Largest magnitude of symmetric int8: -128 is unused, so that zero stays in the middle."""

SCALE_OF_ZERO = 1.0
"""Scale of a tensor that was always 0: any would do, and 0 would divide by zero."""


@dataclass(frozen=True)
class Range(Record):
    """The observations of one tensor, and the magnitude that int8 covers.

    amax ≥ 0: values beyond ±amax saturate. minimum, maximum: the extremes of all samples. saturated: fraction of all
    values that lie more than half a step of int8 beyond ±amax, so that they are clipped. It is 0 for min-max, and
    estimated from a part of the values for a moving average. values: number of elements seen.

    unused: fraction of the 255 codes that no value reached: by the extremes, and for methods with a histogram also by
    the magnitudes in between. amax_early: amax after most of the samples (see `collect.EARLY`), None if not read.
    """

    amax: float
    minimum: float
    maximum: float
    saturated: float
    values: int
    unused: float = 0.0
    amax_early: float | None = None

    @property
    def scale(self) -> float:
        """Step of symmetric int8: amax / 127, or 1 where amax is 0."""
        return self.amax / INT8_MAX if self.amax > 0 else SCALE_OF_ZERO

    @property
    def moved(self) -> float:
        """How far the range still moved with the last samples, relative to itself: |amax - amax_early| / amax."""
        if self.amax_early is None or self.amax == self.amax_early:
            return 0.0
        return abs(self.amax - self.amax_early) / max(self.amax, self.amax_early)

    @property
    def constant(self) -> bool:
        """Whether the tensor never changed: its range is useless, and suggests data such as all-black images."""
        return self.minimum == self.maximum


@dataclass(frozen=True)
class Ranges(Record):
    """The ranges of a model's activations by tensor name, and how they were found.

    parameters: those of the method, e.g. {"percentile": 99.99, "bins": 8192}; none for min-max. provider: ONNX
    Runtime's, which ran the model. empty: tensors without a value in any sample, which have no range.
    """

    __pydantic_config__ = ConfigDict(extra="ignore", allow_inf_nan=False)

    method: Method
    sample_count: int
    tensors: Mapping[str, Range]
    parameters: Mapping[str, float] = field(default_factory=dict)
    provider: str = "CPUExecutionProvider"
    empty: tuple[str, ...] = ()

    @property
    def constants(self) -> tuple[str, ...]:
        """Names of the tensors that never changed over all samples."""
        return tuple(name for name, tensor_range in self.tensors.items() if tensor_range.constant)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON value; floats survive the round trip exactly. The caller adds the digest of the data set."""
        return {**super().to_json(), "constants": list(self.constants)}

    @classmethod
    def from_json(cls, value: object, what: str = "calibration ranges") -> Self:
        """Return the inverse of `to_json`; unknown keys are ignored. Raises `CalibrationError`."""
        return parse(cls, json.dumps(value), what, error=CalibrationError, hint="calibrate again")
