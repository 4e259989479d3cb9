"""Protobuf's wire format, read and cut without parsing what is inside (protobuf.dev/programming-guides/encoding).

`without_raw_data` takes the large weights out of a serialized ONNX model, so that parsing it costs the graph's memory
alone. Field numbers: onnx.proto.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator, Mapping

Span = tuple[int, int]
"""Start and end of some bytes."""

Buffer = bytes | mmap.mmap

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
"""Wire types."""

_GRAPH, _INITIALIZER = 7, 5  # of ModelProto, of GraphProto
_DATA_TYPE, _RAW_DATA = 2, 9  # of TensorProto
_PLAIN = {1, _DATA_TYPE, 8, _RAW_DATA, 12}
"""Fields of a tensor that says no more than dims, data type, name, values and a text."""

_STRING = 8  # TensorProto.DataType: its values have no raw form


def fields(data: Buffer, message: Span) -> Iterator[tuple[int, Span]]:
    """Number, start and end of every field's value in the message; of a varint, the bytes that it is written in."""
    at, end = message
    while at < end:
        tag, at = varint(data, at)
        field, kind = tag >> 3, tag & 7
        if kind == BYTES:
            length, start = varint(data, at)
            at = start + length
        elif kind == VARINT:
            start = at
            _, at = varint(data, at)
        elif kind in (FIXED64, FIXED32):
            start, at = at, at + (8 if kind == FIXED64 else 4)
        else:
            raise ValueError(f"unknown wire type {kind}")
        if at > end or not field:
            raise ValueError("a field runs past its message, or has no number")
        yield field, (start, at)


def varint(data: Buffer, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if not byte & 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("a varint is too long")


def without_raw_data(data: Buffer, least: int) -> tuple[bytes, dict[int, Span]]:
    """Return a serialized ModelProto without raw data of at least `least` bytes in the main graph's initializers, and
    where those lie in `data`, by the initializer's index.

    Initializers that are not plain, as those with external data, are left as they are. Raises `IndexError` or
    `ValueError` for what is no protobuf.
    """
    found: dict[int, Span] = {}
    count = 0

    def tensor(span: Span) -> bytes:
        nonlocal count
        parts = list(fields(data, span))
        raw = [part for field, part in parts if field == _RAW_DATA]
        types = [varint(data, part[0])[0] for field, part in parts if field == _DATA_TYPE]
        plain = {field for field, _ in parts} <= _PLAIN and len(raw) == len(types) == 1 and types[0] != _STRING
        if plain and raw[0][1] - raw[0][0] >= least:
            found[count] = raw[0]
        count += 1
        return _changed(data, span, {_RAW_DATA: None} if count - 1 in found else {})

    def graph(span: Span) -> bytes:
        return _changed(data, span, {_INITIALIZER: tensor})

    return _changed(data, (0, len(data)), {_GRAPH: graph}), found


def _changed(data: Buffer, message: Span, changes: Mapping[int, Callable[[Span], bytes] | None]) -> bytes:
    """Return a message with other values in fields of bytes, made from the spans of theirs; None leaves a field out."""
    pieces = []
    kept = at = message[0]
    for field, span in fields(data, message):
        if field in changes and data[at] & 7 == BYTES:
            pieces.append(data[kept:at])
            if (change := changes[field]) is not None:
                content = change(span)
                pieces += [_as_varint(field << 3 | BYTES), _as_varint(len(content)), content]
            kept = span[1]
        at = span[1]
    return b"".join([*pieces, data[kept : message[1]]])


def _as_varint(number: int) -> bytes:
    written = bytearray()
    while number > 0x7F:
        written.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*written, number])
