"""What was found on a decoder besides its outputs, as a part of the accuracy report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from engineworks.typed_json import Count, Document, Report, Size


@dataclass(frozen=True)
class Difference(Document):
    """The worst position of a situation. difference: of its logits, None if a value is not finite."""

    difference: Size | None
    position: Count
    stream: Count


@dataclass(frozen=True)
class Refusal(Document):
    """Whether a token beyond the context is refused."""

    refused: bool


@dataclass(frozen=True)
class Exact(Document):
    """Whether logits were bitwise equal; None where two equal runs differ, so that it cannot be told."""

    equal: bool | None


Situation = Difference | Refusal | Exact


@dataclass(frozen=True)
class Continuation(Document):
    """A prompt's continuation.

    engine, reference: token ids. parted: index of the first token that differs, None if none does. gap: by how much
    fp32 prefers its own token there, None if unknown. same_text: the text before it.
    """

    prompt: str
    text: str
    reference_text: str
    engine: tuple[int, ...]
    reference: tuple[int, ...]
    parted: Count | None
    gap: float | None
    same_text: str | None
    why: Literal["", "near tie", "error"]


@dataclass(frozen=True)
class DecoderAccuracy(Document):
    """computes: the type that the engine computes in. situations: by name, see `situations.SITUATIONS`. usual_error:
    root mean square error of a logit, at least what one rounding makes. moved: how far one rounding moves the lowered
    model's logits, None if unknown."""

    computes: Literal["fp32", "fp16", "bf16", "w4a8"]
    situations: Mapping[str, Situation]
    prompts: tuple[Continuation, ...]
    usual_error: Size
    moved: Size | None


@dataclass(frozen=True)
class LoweredDecoder(Report):
    """How far one rounding moves the lowered model's logits, relative to their spread; None if unknown, and why.

    moved: the worst position's. usual: root mean square over all positions.
    """

    FILE = "lowered.json"

    moved: Size | None
    usual: Size | None
    why: str
