"""TensorRT's dtypes by name, and ours."""

from __future__ import annotations

DTYPES = {
    "FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16", "FP8": "float8e4m3fn",
    "INT64": "int64", "INT32": "int32", "INT8": "int8", "INT4": "int4", "UINT8": "uint8", "BOOL": "bool",
}  # fmt: skip
"""The vendor's DataType by name → ours."""


def dtype_name(vendor_name: str) -> str:
    """The vendor's DataType by name → ours."""
    return DTYPES.get(vendor_name, vendor_name.lower())
