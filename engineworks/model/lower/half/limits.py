"""Limits of numerical verification, and how failures are reported."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from engineworks.model.lower.report import HalfType, OutputProof


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
