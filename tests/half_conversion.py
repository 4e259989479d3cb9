"""A model in half precision by rules alone, as `lower_half` begins."""

from __future__ import annotations

from collections.abc import Sequence

import onnx

from engineworks.model.lower.half.convert import Halved, convert, prepare
from engineworks.model.lower.report import HalfReport, HalfType


def to_half(model: onnx.ModelProto, dtype: HalfType, *, keep: Sequence[str] = ()) -> Halved:
    return convert(prepare(model, dtype, keep), {})


def clamped(made: Halved | HalfReport) -> tuple[str, ...]:
    """Return the constants that were cut, each once."""
    return tuple(dict.fromkeys(clamp.tensor for clamp in made.clamps))
