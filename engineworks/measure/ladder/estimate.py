"""Estimated time of an engine that this host cannot run, relative to fp16; a guess to order candidates by. Pure.

estimate = (arithmetic + bytes) / 2, both relative to fp16. Arithmetic limits large batches, bytes limit small ones.

Arithmetic: the reciprocal of the dense peak rates in NVIDIA's data sheets (T4, A100, A10, L40S, H100 SXM, RTX PRO
6000), as if every node had the precision. Bytes: size of the lowered models, which store weights as the engine needs
them; the precision's bits if sizes are unknown. (A small model's engine is mostly kernels: digits in int8 is 1.5 times
the size of fp16.) The estimate ignores casts and kernels; a measurement replaces it.

Compared with an H100 (TensorRT-RTX 1.6, BERT-base, int8 and fp8 over fp16): the peak rates predict 0.56 for both. The
GPU measured 1.08 at batch 1, and 1.64 (int8) and 1.23 (fp8) at batch 32. So for 9.0 the arithmetic is the value
measured at batch 32, which gives estimates of 1.1 and 0.9. No other GPU was measured; those use their data sheets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

LABEL = "estimated: mean of arithmetic at peak rate (9.0: as once seen) and weight bytes, over fp16's; not measured"

_FP32 = {"7.5": 8.0, "8.0": 16.0, "8.6": 4.0, "8.9": 4.0, "9.0": 15.0, "12.0": 4.0}
"""Time of fp32 arithmetic without TF32, by compute capability: fp16's dense tensor-core rate over fp32's rate."""
_FP32_ELSEWHERE = 4.0

_ARITHMETIC = {"fp16": 1.0, "bf16": 1.0, "int8": 0.5, "fp8": 0.5, "int8_weights": 1.0, "int4_weights": 1.0, "w4a8": 0.5}

_MEASURED = {"9.0": {"int8": 1.6, "fp8": 1.2}}
"""Measured time of arithmetic relative to fp16, by compute capability; see above."""

DECODER_TIMES = {"fp32": 2.0, "fp16": 1.0, "int8_weights": 3.2, "int4_weights": 0.87}
"""Time of a decoder's step on a GPU relative to fp16. Measured once, at Llama-2-7B's shape on an H200 with TensorRT-RTX
1.6 (6.1, 19.4 and 5.3 ms at batch 1): weights in int8 are not multiplied as int8. fp32: twice the bytes."""

_BITS = {"fp32": 32, "fp16": 16, "bf16": 16, "int8": 8, "fp8": 8, "int8_weights": 8, "int4_weights": 4, "w4a8": 4}


def estimate_time(
    relative_times: Mapping[str, float],
    capabilities: Sequence[str],
    parts: Sequence[str],
    size: int | None,
    fp16_size: int | None,
) -> float:
    """Time relative to fp16 on the same target.

    relative_times: the backend's own times relative to fp32 (`Traits`); if given, nothing else counts. parts: the plain
    precisions that the engine computes in, quantized ones first. size, fp16_size: bytes of the lowered models, None if
    unknown.
    """
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
