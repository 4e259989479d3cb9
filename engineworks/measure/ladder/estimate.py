"""How long an engine that nothing here can run will take, relative to fp16: a guess, to order candidates by. Pure.

estimate = (arithmetic + bytes) / 2, both relative to fp16: the first is what bounds large batches, the second what
bounds small ones. Arithmetic: the reciprocal of the dense peak rates in NVIDIA's data sheets (T4, A100, A10, L40S, H100
SXM, RTX PRO 6000), as if every node had the precision. Bytes: of the lowered models, whose weights are stored as the
engine needs them; by the precision's bits where these are not known. (An engine's own size is mostly kernels where the
model is small: digits in int8 is 1.5 times fp16 for it.) It knows nothing of casts and kernels: measuring replaces it.

Held against an H100 (TensorRT-RTX 1.6, BERT-base, int8 and fp8 over fp16): the peak rates say 0.56 for both, the GPU
1.08 at batch 1 and 1.64 (int8), 1.23 (fp8) at batch 32. So on 9.0 the arithmetic is what was measured at batch 32,
which makes 1.1 and 0.9 of it; other GPUs were not at hand, and go by their data sheets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

SENTENCE = "estimated: mean of arithmetic at peak rate (9.0: as once seen) and weight bytes, over fp16's; not measured"

_FP32 = {"7.5": 8.0, "8.0": 16.0, "8.6": 4.0, "8.9": 4.0, "9.0": 15.0, "12.0": 4.0}
"""Time of fp32 arithmetic without TF32, by compute capability: fp16's dense tensor-core rate over fp32's rate."""
_FP32_ELSEWHERE = 4.0

_ARITHMETIC = {"fp16": 1.0, "bf16": 1.0, "int8": 0.5, "fp8": 0.5, "int8_weights": 1.0, "int4_weights": 1.0}

_MEASURED = {"9.0": {"int8": 1.6, "fp8": 1.2}}
"""Time of arithmetic relative to fp16 where it was measured, by compute capability; see above."""

_BITS = {"fp32": 32, "fp16": 16, "bf16": 16, "int8": 8, "fp8": 8, "int8_weights": 8, "int4_weights": 4}


def estimate_time(
    relative_times: Mapping[str, float],
    capabilities: Sequence[str],
    parts: Sequence[str],
    size: int | None,
    fp16_size: int | None,
) -> float:
    """Time relative to fp16 on the same target. relative_times: the backend's own (`Traits`), relative to fp32; then
    nothing else counts. parts: the plain precisions that the engine computes in, quantized ones first. size, fp16_size:
    bytes of the lowered models, None where not known."""
    known = [p for p in parts if p in _BITS] or ["fp32"]
    computing = known[:-1] or known
    if relative_times:
        return _mean([relative_times.get(p, 1.0) for p in computing])
    arithmetic = _mean([_arithmetic(p, capabilities) for p in computing])
    size_ratio = size / fp16_size if size and fp16_size else _mean([_BITS[p] / 16 for p in computing])
    return (arithmetic + size_ratio) / 2


def _arithmetic(precision: str, capabilities: Sequence[str]) -> float:
    if precision == "fp32":
        return _mean([_FP32.get(c, _FP32_ELSEWHERE) for c in capabilities] or [_FP32_ELSEWHERE])
    return _mean([_MEASURED.get(c, {}).get(precision, _ARITHMETIC[precision]) for c in capabilities or [""]])


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
