"""The first 64 bytes of a TensorRT-RTX plan: version and GPUs, readable without TensorRT and without a GPU.

Derived from plans of 1.4.0.76, 1.5.0.114, 1.6.1.120 and 1.7.1.116 built for each capability and for several.
Little-endian: 0 'vtrt' · 8 u64 2 · 16 u64 bytes of the whole file · 24 four bytes of version · 28 'vtrt' · 32 u32 mask
of compute capabilities · 56 u64 that grows with the weights.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from engineworks.errors import RunError
from engineworks.typed_json import Record

HEADER_BYTES = 64
MAGIC = b"vtrt"

BITS = ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")
"""Compute capabilities by bit of the mask. The bit after a version's last one means 'and later': portable engines,
which name no capability, set it. 12.1 came with 1.5."""


@dataclass(frozen=True)
class PlanHeader(Record):
    """plan_bytes: length of the whole file. later: whether GPUs unknown to the version may run it too."""

    magic: str
    plan_bytes: int
    version: str
    compute_capabilities: tuple[str, ...]
    later: bool


def read_plan_header(data: bytes) -> PlanHeader:
    """Decode the first 64 bytes of a plan. Raises `RunError` for anything else."""
    if len(data) < HEADER_BYTES or data[:4] != MAGIC or data[28:32] != MAGIC:
        raise RunError("not a TensorRT-RTX engine: its header is missing", hint="was it built by another backend?")
    (plan_bytes,) = struct.unpack_from("<Q", data, 16)
    version = tuple(data[24:28])
    (mask,) = struct.unpack_from("<I", data, 32)
    known = BITS[:5] if version < (1, 5) else BITS
    return PlanHeader(
        magic=MAGIC.decode(),
        plan_bytes=plan_bytes,
        version=".".join(map(str, version)),
        compute_capabilities=tuple(c for bit, c in enumerate(known) if mask >> bit & 1),
        later=bool(mask >> len(known) & 1),
    )
