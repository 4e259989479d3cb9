"""Recorded traffic: a file of requests as clients sent them, in KServe's JSON form.

One line per request, each the body of `POST /v2/models/<name>/infer` (KServe's protocol, version 2; other keys are
ignored):

    {"inputs": [{"name": "image", "shape": [1, 1, 28, 28], "datatype": "FP32", "data": [0.0, …]}]}

`data` is flat or nested, row-major. Whether a request fits the model is the server's to say: it is sent as it is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from engineworks.errors import InputError
from engineworks.host.lazy import Array, Arrays

MOST_BYTES, MOST_REQUESTS = 256 * 2**20, 10_000

DATATYPES = {
    "BOOL": "bool", "UINT8": "uint8", "UINT16": "uint16", "UINT32": "uint32", "UINT64": "uint64", "INT8": "int8",
    "INT16": "int16", "INT32": "int32", "INT64": "int64", "FP16": "float16", "FP32": "float32", "FP64": "float64",
}  # fmt: skip
"""KServe's names of dtypes whose values JSON can hold."""

HINT = 'one request a line: {"inputs": [{"name": …, "shape": […], "datatype": "FP32", "data": […]}]}'


def read_requests(path: Path) -> list[Arrays]:
    """Return the requests' inputs by name, in the file's order. Raises `InputError` with the line that is wrong."""
    try:
        if path.stat().st_size > MOST_BYTES:
            raise InputError(f"{path}: is larger than {MOST_BYTES >> 20} MiB", hint="take a sample of the requests")
        lines = path.read_bytes().splitlines()
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise InputError(f"{path}: the recorded requests cannot be read: {why}") from None
    found = [_request(line, f"{path}:{number}") for number, line in enumerate(lines, 1) if line.strip()]
    if not 1 <= len(found) <= MOST_REQUESTS:
        raise InputError(f"{path}: holds {len(found):,} requests; give 1 to {MOST_REQUESTS:,}", hint=HINT)
    return found


def _request(line: bytes, where: str) -> Arrays:
    try:
        inputs = json.loads(line)["inputs"]
        arrays = {str(tensor["name"]): _array(tensor, where) for tensor in inputs}
    except (ValueError, TypeError, KeyError, RecursionError):
        raise InputError(f"{where}: is no inference request in JSON", hint=HINT) from None
    if not arrays or len(arrays) < len(inputs):
        raise InputError(f"{where}: {'names an input twice' if arrays else 'has no inputs'}", hint=HINT)
    return arrays


def _array(tensor: Mapping[str, Any], where: str) -> Array:
    name, datatype, shape = tensor["name"], tensor["datatype"], tensor["shape"]
    if datatype not in DATATYPES:
        known = ", ".join(DATATYPES)
        raise InputError(f"{where}: input '{name}' has an unknown datatype {datatype!r}", hint=f"one of {known}")
    try:
        values = np.array(tensor["data"])
        with np.errstate(invalid="ignore"):
            array: Array = values.astype(DATATYPES[datatype])
        whole = array.dtype.kind == "f" or np.array_equal(array, values)  # 300 is no UINT8, and 1.5 no INT32
        if values.dtype.kind in "biuf" and whole and min(shape, default=0) >= 0:
            return array.reshape(shape)
    except (ValueError, TypeError, OverflowError):
        pass
    raise InputError(f"{where}: the data of input '{name}' does not fit shape {shape} and datatype {datatype}")
