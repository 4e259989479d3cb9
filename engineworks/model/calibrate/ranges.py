"""Activation ranges: the observations of each tensor, and their JSON form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Literal, get_args

from engineworks.errors import CalibrationError

Method = Literal["minmax", "entropy", "percentile", "mse", "moving_average"]
METHODS: tuple[Method, ...] = get_args(Method)

INT8_MAX = 127
"""Largest magnitude of symmetric int8: -128 is unused, so that zero stays in the middle."""

SCALE_OF_ZERO = 1.0
"""Scale of a tensor that was always 0: any would do, and 0 would divide by zero."""


@dataclass(frozen=True)
class Range:
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

    def to_json(self) -> dict[str, object]:
        return asdict(self)


@dataclass(frozen=True)
class Ranges:
    """The ranges of a model's activations by tensor name, and how they were found.

    parameters: those of the method, e.g. {"percentile": 99.99, "bins": 8192}; none for min-max. provider: ONNX
    Runtime's, which ran the model. empty: tensors without a value in any sample, which have no range.
    """

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

    def to_json(self) -> dict[str, object]:
        """Return a JSON value; floats survive the round trip exactly. The caller adds the digest of the data set."""
        return {
            "method": self.method,
            "parameters": dict(self.parameters),
            "sample_count": self.sample_count,
            "provider": self.provider,
            "constants": list(self.constants),
            "empty": list(self.empty),
            "tensors": {name: tensor_range.to_json() for name, tensor_range in self.tensors.items()},
        }

    @classmethod
    def from_json(cls, value: Mapping[str, object]) -> Ranges:
        """Return the inverse of `to_json`; unknown keys are ignored. Raises `CalibrationError`."""
        try:
            method, sample_count = value["method"], value["sample_count"]
            tensors, parameters = value["tensors"], value["parameters"]
        except KeyError as error:
            raise CalibrationError(f"these are no calibration ranges: {error} is missing", hint=_AGAIN) from None
        if method not in METHODS or not isinstance(tensors, Mapping) or not isinstance(parameters, Mapping):
            raise CalibrationError(f"these are no calibration ranges of a known method: {method!r}", hint=_AGAIN)
        if not isinstance(sample_count, int):
            raise CalibrationError(f"calibration ranges with sample_count {sample_count!r}", hint=_AGAIN)
        ranges = {str(name): _range_from_json(str(name), tensor_range) for name, tensor_range in tensors.items()}
        settings = {str(name): number for name, number in parameters.items()}
        empty = value.get("empty", ())
        assert isinstance(empty, list | tuple)
        return cls(method, sample_count, ranges, settings, str(value.get("provider", cls.provider)), tuple(empty))


_AGAIN = "calibrate again"


def _range_from_json(name: str, value: object) -> Range:
    try:
        assert isinstance(value, Mapping)
        early = value.get("amax_early")
        return Range(
            amax=float(value["amax"]),
            minimum=float(value["minimum"]),
            maximum=float(value["maximum"]),
            saturated=float(value["saturated"]),
            values=int(value["values"]),
            unused=float(value.get("unused", 0.0)),
            amax_early=None if early is None else float(early),
        )
    except (AssertionError, KeyError, TypeError, ValueError):
        raise CalibrationError(f"the calibration range of tensor '{name}' is damaged: {value!r}", hint=_AGAIN) from None
