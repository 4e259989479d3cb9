"""The formats of quantized operands, as numbers: integers or e4m3 floats, and the scales that undo them.

All are symmetric: zero stays zero, as TensorRT requires. DequantizeLinear computes value × scale.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engineworks.errors import LoweringError
from engineworks.host.lazy import onnx
from engineworks.model.calibrate.ranges import INT8_MAX, SCALE_OF_ZERO, Range

FP8_MAX = 448.0
"""Largest finite value of e4m3 without infinities (OCP 8-bit floating point specification, table 1)."""

INT4_MIN, INT4_MAX = -8, 7
BLOCK_SIZES = (128, 64, 32)
"""Weights of one output channel that share an int4 scale: the first that divides their number is used."""

_CLIPS = (1.0, 0.95, 0.9, 0.85, 0.8)
"""Shares of a block's largest weight to try as the end of its int4 range. With 15 steps, clipping the largest weight
often costs less than the coarser steps that it needs."""

_ROUNDED_AT_ONCE = 1 << 18
"""Weights rounded at a time: temporary copies of a large weight would cost more than the rounding."""

_ALL_HEAVY = ("Conv", "ConvTranspose", "Gemm", "MatMul")


@dataclass(frozen=True)
class Format:
    """A format of quantized operands. operators: those with kernels for it. activations: whether it quantizes these
    too, or only weights. opset: the first whose Q/DQ have it. elem_type: ONNX element type of the stored values.
    blocks: weights per scale of int4, the first that divides a channel; empty where a channel has one scale."""

    name: str
    operators: tuple[str, ...]
    activations: bool
    opset: int
    elem_type: int
    blocks: tuple[int, ...] = ()

    def zero_point(self, shape: tuple[int, ...], name: str) -> onnx.TensorProto:
        """Return stored zeros of this shape, in the format's element type."""
        import ml_dtypes

        return self.tensor(np.zeros(shape, ml_dtypes.float8_e4m3fn if self.name == "fp8" else np.int8), name)

    def tensor(self, values: NDArray[Any], name: str) -> onnx.TensorProto:
        """Return the quantized values, of any shape, as stored; int4 in pairs, the first in the low half of a byte."""
        if not self.blocks:
            return onnx.numpy_helper.from_array(values, name)
        flat = np.append(values.ravel(), np.zeros(values.size % 2, np.int8)).astype(np.uint8)
        packed = (flat[0::2] & 0xF) | (flat[1::2] << 4)
        made = onnx.TensorProto(name=name, data_type=self.elem_type, dims=values.shape)
        made.raw_data = packed.tobytes()
        return made

    def scale_of(self, observed: Range) -> np.float32:
        """Return the scale of an activation, fp32. fp8 covers all values, whatever the method: its steps grow with the
        values, so clipping outliers makes no other value finer."""
        if self.name == "fp8":
            largest = max(abs(observed.minimum), abs(observed.maximum))
            return np.float32(largest / FP8_MAX) if largest > 0 else np.float32(SCALE_OF_ZERO)
        return np.float32(observed.scale)


FORMATS: Mapping[str, Format] = {
    "int8": Format("int8", _ALL_HEAVY, True, 13, 3),
    "fp8": Format("fp8", _ALL_HEAVY, True, 19, 17),
    "int8_weights": Format("int8_weights", _ALL_HEAVY, False, 13, 3),
    "int4_weights": Format("int4_weights", ("Gemm", "MatMul"), False, 21, 22, BLOCK_SIZES),
    "w4a8": Format("w4a8", ("Gemm", "MatMul"), False, 21, 22, BLOCK_SIZES[-1:]),
}
"""By name. The element types are onnx.TensorProto.INT8, FLOAT8E4M3FN and INT4. w4a8 is for the CPU alone, where small
blocks cost little: SmolLM2's perplexity over fp32's is 1.28 with blocks of 32 and 1.57 with 64 and 128, for 5 % more
bytes."""


@dataclass(frozen=True)
class QuantizedWeight:
    """values: as stored (int4 as int8 before packing). scale: fp32, [], [channels], or with `block` the shape of the
    weight with `axis` in blocks. axis: that of channels, or of blocks; None for one scale."""

    values: NDArray[Any]
    scale: NDArray[np.float32]
    axis: int | None
    block: int = 0


def quantize_weight(
    values: NDArray[np.float32], axis: int | None, name: str
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Return symmetric int8 values in the shape of `values`, and their scale: fp32[n] along `axis`, fp32[] if that is
    None.

    scale = max|w| / 127, values = round(w / scale), half to even. A channel of zeros gets scale 1. Raises
    `LoweringError` for NaN and infinity.
    """
    others = None if axis is None else tuple(i for i in range(values.ndim) if i != axis)
    scale = _largest(values, others, name) / np.float32(INT8_MAX)
    scale[scale < np.finfo(np.float32).tiny] = SCALE_OF_ZERO
    quantized = np.empty(values.shape, np.int8)
    scales = np.broadcast_to(scale, (len(values), *scale.shape[1:]))
    rows = max(1, _ROUNDED_AT_ONCE * len(values) // values.size)
    for start in range(0, len(values), rows):
        block = slice(start, start + rows)
        quantized[block] = np.clip(np.rint(values[block] / scales[block]), -INT8_MAX, INT8_MAX)
    return quantized, scale.reshape(() if axis is None else -1)


def quantize_weight_fp8(values: NDArray[np.float32], name: str) -> tuple[NDArray[Any], NDArray[np.float32]]:
    """Return e4m3 values in the shape of `values` and one scale, fp32[], max|w| / 448 (OCP FP8, table 1).

    Raises `LoweringError` for NaN and infinity.
    """
    import ml_dtypes

    scale = np.float32(_largest(values, None, name).item() / FP8_MAX)
    if scale < np.finfo(np.float32).tiny:
        scale = np.float32(SCALE_OF_ZERO)
    with np.errstate(under="ignore"):
        quantized = np.clip(values / scale, -FP8_MAX, FP8_MAX).astype(ml_dtypes.float8_e4m3fn)
    return quantized, np.asarray(scale, np.float32)


def quantize_weight_int4(
    values: NDArray[np.float32], axis: int, block: int, name: str
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Return values in -8 … 7, int8 in the shape of the matrix, and scales, fp32 with `axis` in blocks of `block`
    weights.

    Each block uses the end of the range with the smallest squared error among a few (`_CLIPS`). Raises `LoweringError`
    for NaN and infinity.
    """
    rows = np.ascontiguousarray(np.moveaxis(values, axis, -1))
    blocks = rows.reshape(-1, block)
    _largest(blocks, None, name)
    quantized, scales = np.empty(blocks.shape, np.int8), np.empty((len(blocks), 1), np.float32)
    step = max(1, _ROUNDED_AT_ONCE // block)
    for start in range(0, len(blocks), step):
        part = slice(start, start + step)
        quantized[part], scales[part] = _best_int4(blocks[part])
    moved = quantized.reshape(rows.shape), scales.reshape(*rows.shape[:-1], -1)
    return np.ascontiguousarray(np.moveaxis(moved[0], -1, axis)), np.ascontiguousarray(np.moveaxis(moved[1], -1, axis))


def _best_int4(blocks: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    amax = np.maximum(blocks.max(axis=1, keepdims=True), -blocks.min(axis=1, keepdims=True))
    amax[amax < np.finfo(np.float32).tiny] = SCALE_OF_ZERO * INT4_MAX
    best = np.zeros(blocks.shape, np.int8)
    scales, errors = np.ones(amax.shape, np.float32), np.full(amax.shape, np.inf, np.float32)
    for clip in _CLIPS:
        scale = (amax * np.float32(clip / INT4_MAX)).astype(np.float32)
        rounded = np.clip(np.rint(blocks / scale), INT4_MIN, INT4_MAX)
        error = np.square(rounded * scale - blocks).sum(axis=1, keepdims=True)
        better = error < errors
        errors, scales = np.where(better, error, errors), np.where(better, scale, scales)
        best = np.where(better, rounded.astype(np.int8), best)
    return best, scales


def block_size(length: int, sizes: Sequence[int] = BLOCK_SIZES) -> int | None:
    """Return the first of the sizes that divides this many weights per output channel; None if none does."""
    return next((size for size in sizes if length % size == 0), None)


def _largest(values: NDArray[np.float32], others: tuple[int, ...] | None, name: str) -> NDArray[np.float32]:
    """Return max |w|, fp32, over the axes `others` (None: all), kept as axes of length 1."""
    amax: NDArray[np.float32] = np.maximum(
        values.max(axis=others, keepdims=True), -values.min(axis=others, keepdims=True)
    )
    if not np.isfinite(amax).all():
        raise LoweringError(f"weight '{name}' holds NaN or infinity", hint="check the model that was exported")
    return amax
