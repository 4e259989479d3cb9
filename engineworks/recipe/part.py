"""The base of the parts of recipes and targets files, and the types of their names and numbers.

Numbers are finite, neither bool nor text, and no larger than their purpose allows. Every numeric field takes its type
from here; a test walks the schema and tries unusable numbers.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

LARGEST_LENGTH = 2**31 - 1
"""Longest dimension, TensorRT's maximum. Also the maximum of counts."""

LONGEST_S = 1_000_000
"""Longest time limit in seconds, 11 days: the operating system's timers end at 24 days."""

LARGEST_TENSOR_BYTES = 2**40
"""No host could hold a single input or output of this size."""

Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Positive = Annotated[float, Field(strict=True, allow_inf_nan=False, gt=0)]
Fraction = Annotated[float, Field(strict=True, allow_inf_nan=False, gt=0, le=1)]
Percentile = Annotated[float, Field(strict=True, allow_inf_nan=False, gt=50, le=100)]
Seconds = Annotated[float, Field(strict=True, allow_inf_nan=False, gt=0, le=LONGEST_S)]
Length = Annotated[int, Field(strict=True, ge=1, le=LARGEST_LENGTH)]
Extent = Annotated[int, Field(strict=True, ge=0, le=LARGEST_LENGTH)]
"""A length that may be 0, such as an empty KV cache. Counts that may be 0 have this type too."""
Streams = Annotated[int, Field(strict=True, ge=1, le=64)]
Opset = Annotated[int, Field(strict=True, ge=13, le=23)]


Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]*$", max_length=80)]
DimName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", max_length=80)]


class Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)
