"""`model.decoder`: what makes a model a decoder language model with a KV cache."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field, StringConstraints, WithJsonSchema
from pydantic_core import PydanticCustomError

from engineworks.recipe.part import LARGEST_LENGTH, DimName, Length, Part
from engineworks.recipe.two_forms import as_numbers, numbers_schema

_SUM = re.compile(r"\s*\w+(\s*\+\s*\w+)*\s*")


def _sum(value: str) -> str:
    if not _SUM.fullmatch(value):
        raise PydanticCustomError("sum", "it should be a sum of dimensions and whole numbers, such as past + sequence")
    return value


def _number_as_text(value: object) -> object:
    return str(value) if type(value) is int and 0 < value <= LARGEST_LENGTH else value


Sum = Annotated[
    str,
    BeforeValidator(_number_as_text),
    StringConstraints(max_length=200),
    AfterValidator(_sum),
    WithJsonSchema(
        {"anyOf": [{"type": "string", "maxLength": 200}, {"type": "integer", "minimum": 1, "maximum": LARGEST_LENGTH}]}
    ),
]


class Decoder(Part):
    """A decoder language model with a KV cache."""

    context: Annotated[tuple[Length, ...], BeforeValidator(as_numbers)] = Field(
        min_length=1,
        description="positions that the cache holds: tokens of prompt and continuation; a list: an engine each",
        json_schema_extra=numbers_schema,
    )
    cache: dict[str, str] = Field(
        default_factory=dict, description="of an ONNX file: cache input: its output; default: by their usual names"
    )
    ties: dict[DimName, Sum] = Field(
        default_factory=dict,
        description="of an ONNX file: a dimension of its mask or of a growing cache, and the sum that it is, e.g. "
        "total: past + sequence; or a length of the cache that the file leaves open, e.g. head_size: 64",
    )

    @property
    def longest(self) -> int:
        """Positions of the longest cache."""
        return max(self.context)
