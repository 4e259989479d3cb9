"""Where the values of one tensor are kept: in its message, or detached, as a span of some file on disk.

A detached tensor uses ONNX's own external-data fields with an absolute location. Graph surgery on detached weights
copies references instead of gigabytes; only what is folded is read in. Such a model is for this process alone:
`onnx_files.save_model` writes it with its weights.
"""

from __future__ import annotations

import math
import os
from contextlib import suppress
from copy import deepcopy
from pathlib import Path
from typing import IO, Any

from engineworks.host.lazy import NDArray, np, onnx

_BITS = {"INT4": 4, "UINT4": 4, "FLOAT4E2M1": 4, "INT2": 2, "UINT2": 2}
_COPY_CHUNK_BYTES = 16 << 20


def tensor_bytes(tensor: onnx.TensorProto) -> int:
    """Bytes of the tensor's values, wherever they are kept; 4-bit types are packed, two to a byte."""
    if tensor.data_type == onnx.TensorProto.STRING:
        return sum(len(s) for s in tensor.string_data)
    elements = int(math.prod(tensor.dims))
    bits: int | None = _BITS.get(onnx.TensorProto.DataType.Name(tensor.data_type))
    if bits:
        return -(-elements * bits // 8)
    return elements * int(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)


def is_external(tensor: onnx.TensorProto) -> bool:
    """Whether the values are in a file: detached by us, or ONNX's external data that was not read in."""
    return bool(tensor.data_location == onnx.TensorProto.EXTERNAL)


def detach(tensor: onnx.TensorProto, file: Path, offset: int, length: int | None = None) -> None:
    """Let the tensor refer to its values at this absolute place; the caller has put them there. length: in bytes, where
    the tensor is not yet known to be sound."""
    for field in ("raw_data", "external_data", "float_data", "int32_data", "int64_data", "double_data", "uint64_data"):
        tensor.ClearField(field)
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (
        ("location", file),
        ("offset", offset),
        ("length", tensor_bytes(tensor) if length is None else length),
    ):
        tensor.external_data.add(key=key, value=str(value))


def attach(tensor: onnx.TensorProto) -> None:
    """Read detached values into the message; a tensor that holds its values is left as it is."""
    if not is_external(tensor):
        return
    with _opened(tensor) as file:
        tensor.raw_data = file.read(external_span(tensor)[2])
    tensor.ClearField("external_data")
    tensor.ClearField("data_location")


def tensor_values(tensor: onnx.TensorProto) -> NDArray[Any]:
    """The tensor's values in its shape and dtype; a detached tensor's are mapped from the file, to be read only, where
    NumPy itself has the dtype."""
    if not is_external(tensor):
        held: NDArray[Any] = onnx.numpy_helper.to_array(tensor)
        return held
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    if dtype.kind in "fiub":
        location, offset, _ = external_span(tensor)
        return np.require(np.memmap(location, dtype, "r", offset, tuple(tensor.dims)), requirements=["C", "A"])
    loaded = deepcopy(tensor)
    attach(loaded)
    return tensor_values(loaded)


def append_values(tensor: onnx.TensorProto, file: IO[bytes]) -> bool:
    """Write the tensor's values, as raw data, to the end of an open file; a detached tensor's are copied piecemeal.

    False, and nothing written, for what has no raw form (strings) or is not in it (4-bit values in a field of int32).
    """
    if is_external(tensor):
        with _opened(tensor) as source:
            _copy(source, file, external_span(tensor)[2])
        return True
    if tensor.data_type == onnx.TensorProto.STRING:
        return False
    content = tensor.raw_data or onnx.numpy_helper.to_array(tensor).tobytes()
    if len(content) != tensor_bytes(tensor):
        return False
    file.write(content)
    return True


def external_span(tensor: onnx.TensorProto) -> tuple[Path, int, int]:
    """Location as written, offset and length in bytes."""
    fields = {entry.key: entry.value for entry in tensor.external_data}
    length = int(fields["length"]) if "length" in fields else tensor_bytes(tensor)
    return Path(fields["location"]), int(fields.get("offset", 0)), length


def _opened(tensor: onnx.TensorProto) -> IO[bytes]:
    """The file of a detached tensor, at its first byte."""
    location, offset, _ = external_span(tensor)
    if not location.is_absolute():
        raise ValueError(f"the values of tensor '{tensor.name}' were not loaded from '{location}'")
    file = location.open("rb")
    file.seek(offset)
    return file


def _copy(source: IO[bytes], target: IO[bytes], length: int) -> None:
    """Copy bytes from one file's position to the other's, within the kernel where it can."""
    target.flush()
    start, to, copied = source.tell(), target.tell(), 0
    with suppress(OSError, AttributeError):  # other systems, and file systems that cannot
        while copied < length:
            now = os.copy_file_range(source.fileno(), target.fileno(), length - copied, start + copied, to + copied)
            if not now:
                break
            copied += now
    source.seek(start + copied)
    target.seek(to + copied)
    length -= copied
    while length:
        chunk = source.read(min(length, _COPY_CHUNK_BYTES))
        if not chunk:
            raise EOFError(f"{source.name} ended {length} bytes early")
        target.write(chunk)
        length -= len(chunk)
