"""Activation ranges: what calibration found out about each tensor, and its JSON form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Literal, get_args

from engineworks.errors import CalibrationError

Method = Literal["minmax", "entropy", "percentile", "mse", "moving_average"]
METHODS: tuple[Method, ...] = get_args(Method)

INT8_MAX = 127
"""Largest magnitude of symmetric int8: -128 is not used, so that zero stays in the middle."""

SCALE_OF_ZERO = 1.0
"""Scale of a tensor that was always 0: any would do, and 0 would divide by zero."""


@dataclass(frozen=True)
class Range:
    """What was seen of one tensor, and the magnitude that int8 is to cover.

    amax ≥ 0: values beyond ±amax saturate. minimum, maximum: the extremes of all samples. saturated: fraction of all
    values that lie more than half a step of int8 beyond ±amax, so that they are clipped: 0 for min-max, estimated from
    a part of the values for a moving average. values: how many elements were seen. unused: fraction of the 255 codes
    that no value reached: by the extremes, and for methods that count a histogram also by the magnitudes in between.
    amax_early: what amax was after most of the samples (see `collect.EARLY`), None if that was not looked at.
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
        """By how much of itself the range still moved with the last samples: |amax - amax_early| / amax."""
        if self.amax_early is None or self.amax == self.amax_early:
            return 0.0
        return abs(self.amax - self.amax_early) / max(self.amax, self.amax_early)

    @property
    def constant(self) -> bool:
        """Whether the tensor never changed: its range is useless, and points to data such as all-black images."""
        return self.minimum == self.maximum

    def to_json(self) -> dict[str, object]:
        return asdict(self)


@dataclass(frozen=True)
class Ranges:
    """The ranges of a model's activations by tensor name, and how they were found.

    parameters: those of the method, e.g. {"percentile": 99.99, "bins": 8192}; none for min-max. provider: of ONNX
    Runtime, on which the model ran. empty: tensors that held no value in any sample, which have no range.
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
        return tuple(name for name, seen in self.tensors.items() if seen.constant)

    def to_json(self) -> dict[str, object]:
        """JSON value; floats survive the round trip exactly. The caller adds the digest of the data set."""
        return {
            "method": self.method,
            "parameters": dict(self.parameters),
            "sample_count": self.sample_count,
            "provider": self.provider,
            "constants": list(self.constants),
            "empty": list(self.empty),
            "tensors": {name: seen.to_json() for name, seen in self.tensors.items()},
        }

    @classmethod
    def from_json(cls, value: Mapping[str, object]) -> Ranges:
        """The inverse of `to_json`; keys that it does not know are left alone. Raises `CalibrationError`."""
        try:
            method, sample_count = value["method"], value["sample_count"]
            tensors, parameters = value["tensors"], value["parameters"]
        except KeyError as error:
            raise CalibrationError(f"these are no calibration ranges: {error} is missing", hint=_AGAIN) from None
        if method not in METHODS or not isinstance(tensors, Mapping) or not isinstance(parameters, Mapping):
            raise CalibrationError(f"these are no calibration ranges of a known method: {method!r}", hint=_AGAIN)
        if not isinstance(sample_count, int):
            raise CalibrationError(f"calibration ranges with sample_count {sample_count!r}", hint=_AGAIN)
        ranges = {str(name): _range_from_json(str(name), seen) for name, seen in tensors.items()}
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
