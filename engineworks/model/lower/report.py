"""The report of lowering a model, and the limits of its numerical verification."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from engineworks.typed_json import Count, Document, Report

HalfType = Literal["float16", "bfloat16"]


@dataclass(frozen=True)
class AsIs(Document):
    """Q/DQ nodes of the model, and the types that they store."""

    quantize_nodes: Count
    dequantize_nodes: Count
    types: tuple[str, ...]


@dataclass(frozen=True)
class WeightLoss(Document):
    """Elements of the converted weights: how many became 0, and how many are subnormal in the half type."""

    elements: Count
    flushed: Count
    subnormal: Count


@dataclass(frozen=True)
class Clamp(Document):
    """A constant that one use reads cut to ±limit. position: the input of the node of that name, or
    `half.weights.FILLED` for the value that a ConstantOfShape holds. tensor: the constant."""

    node: str
    position: int
    tensor: str
    limit: float


@dataclass(frozen=True)
class OutputProof(Document):
    """One output of the half model compared with the fp32 model's.

    cosine: the smallest over the samples. sqnr_db: 10 log10(Σ reference² / Σ error²) over all samples; 200 means equal.
    agreement: share of equal elements, for outputs that are not floating point, and of equal infinities. max_abs_error:
    over all elements. finite: no value is infinite or NaN where the reference is finite. compared of `samples` have the
    reference's shape (an output's length may depend on the data); the others count in no metric.
    """

    name: str
    floating: bool
    cosine: float
    sqnr_db: float
    max_abs_error: float
    agreement: float
    finite: bool
    samples: Count
    compared: Count


@dataclass(frozen=True)
class HalfReport(Document):
    """The conversion of a model. converter: 'engineworks' or 'autocast'. kept: nodes that stay fp32 → reason. rounds:
    how often more nodes were kept after a failed verification. clamps: constants that were cut. outputs: the
    verification."""

    dtype: HalfType
    converter: Literal["engineworks", "autocast"]
    nodes: int
    converted: int
    casts: int
    kept: Mapping[str, str]
    clamps: tuple[Clamp, ...]
    weights: WeightLoss | None
    rounds: int
    samples: int
    outputs: tuple[OutputProof, ...]


@dataclass(frozen=True)
class Lowering(Report):
    """unquantized: the type of what is not quantized. formats: quantized nodes → format. kept: nodes that are neither
    quantized nor in half precision, though asked for → reason. half: the conversion to fp16 or bf16. as_is: the Q/DQ of
    a model that is taken as it is. notes: on what the recipe names to no effect."""

    FILE = "lowering.json"

    precision: str
    unquantized: str = "fp32"
    formats: Mapping[str, str] = field(default_factory=dict)
    kept: Mapping[str, str] = field(default_factory=dict)
    half: HalfReport | None = None
    as_is: AsIs | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class HalfLimits:
    """Limits of the verification, per output, and its settings.

    min_cosine: of every sample. min_sqnr_db: over all samples. min_agreement: of integer and boolean outputs. headroom:
    activations above the type's largest value divided by this keep their nodes in fp32. samples: number of samples.
    rounds: how often more nodes may be kept after a failed verification.
    """

    min_cosine: float
    min_sqnr_db: float
    min_agreement: float = 0.98
    headroom: float = 2.0
    samples: int = 8
    rounds: int = 4


DEFAULT_LIMITS: Mapping[HalfType, HalfLimits] = {
    "float16": HalfLimits(min_cosine=0.999, min_sqnr_db=30.0),
    "bfloat16": HalfLimits(min_cosine=0.99, min_sqnr_db=17.0),
}
"""Far below a sound conversion (about 60 dB in fp16, 40 dB in bf16) and far above a broken one. The recipe's own
limits, on the engine and with labels, decide how much accuracy a task may lose."""


def failure(proof: OutputProof, limits: HalfLimits) -> str:
    """Return what is wrong with an output, with its value and the limit; empty if nothing is."""
    name = f"output '{proof.name}'"
    if 2 * proof.compared < proof.samples:
        return f"{name} has another shape than in fp32 on {proof.samples - proof.compared} samples"
    if not proof.finite:
        return f"{name} is infinite or NaN where fp32 is not"
    if proof.agreement < limits.min_agreement:
        return f"{name} agrees with fp32 in {proof.agreement:.2%} of its elements (limit {limits.min_agreement:.2%})"
    if proof.floating and proof.cosine < limits.min_cosine:
        return f"{name} has cosine {proof.cosine:.5f} to fp32 (limit {limits.min_cosine})"
    if proof.floating and proof.sqnr_db < limits.min_sqnr_db:
        return f"{name} has a signal to noise ratio of {proof.sqnr_db:.1f} dB (limit {limits.min_sqnr_db:g} dB)"
    return ""
