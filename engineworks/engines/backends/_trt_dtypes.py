"""TensorRT's dtypes and this project's, by name."""

from __future__ import annotations

DTYPES = {
    "FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16", "FP8": "float8e4m3fn",
    "INT64": "int64", "INT32": "int32", "INT8": "int8", "INT4": "int4", "UINT8": "uint8", "BOOL": "bool",
}  # fmt: skip
"""The vendor's DataType by name → this project's dtype."""


def dtype_name(vendor_name: str) -> str:
    """Return this project's dtype for a name of the vendor's DataType."""
    return DTYPES.get(vendor_name, vendor_name.lower())
