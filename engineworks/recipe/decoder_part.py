"""`model.decoder`: what makes a model a decoder language model with a KV cache."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator, Field, StringConstraints

from engineworks.recipe.numbers import Length
from engineworks.recipe.part import DimName, Part
from engineworks.recipe.two_forms import as_numbers, numbers_schema

Sum = Annotated[str, StringConstraints(pattern=r"^\s*\w+(\s*\+\s*\w+)*\s*$", max_length=200)]
"""Names of dimensions and whole numbers, such as 'past + sequence'."""


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
        description="of an ONNX file whose cache grows: a dimension of its mask or its cache outputs, and the sum that "
        "it is, e.g. total: past + sequence",
    )

    @property
    def longest(self) -> int:
        """Positions of the longest cache."""
        return max(self.context)
