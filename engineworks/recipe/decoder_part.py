"""`model.decoder`: what makes a model a decoder language model with a KV cache."""

from __future__ import annotations

from pydantic import Field

from engineworks.recipe.numbers import Length
from engineworks.recipe.part import Part


class Decoder(Part):
    """A decoder language model with a KV cache."""

    context: Length = Field(description="positions that the cache holds: tokens of prompt and continuation")
    cache: dict[str, str] = Field(
        default_factory=dict, description="of an ONNX file: cache input: its output; default: by their usual names"
    )
