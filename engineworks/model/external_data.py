"""Which files an ONNX file keeps its weights in, read from the protobuf's wire format alone.

`plan` needs the names for its digests and must not import ONNX. Format: protobuf.dev/programming-guides/encoding;
field numbers: onnx.proto (ModelProto.graph 7, ModelProto.metadata_props 14, GraphProto.initializer 5,
TensorProto.external_data 13, StringStringEntryProto.key 1, value 2). Weights in the attributes of nodes are small by
nature and are not looked at; the export step compares with what ONNX itself finds.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

from engineworks.errors import ModelError

_GRAPH, _INITIALIZER, _EXTERNAL, _KEY, _VALUE = 7, 5, 13, 1, 2
_METADATA = 14
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def external_data_names(path: Path) -> tuple[str, ...]:
    """Locations of external data, as written in the file, sorted. Raises `ModelError` if it is no protobuf."""
    if path.stat().st_size == 0:
        raise ModelError(f"{path}: not an ONNX model: the file is empty", hint="copy it again")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            return tuple(sorted(set(_locations(data))))
        except (IndexError, ValueError):
            raise ModelError(f"{path}: not an ONNX model: its protobuf does not parse", hint=_hint(data[:64])) from None


def metadata_of(path: Path) -> dict[str, str]:
    """The model's own metadata (`metadata_props`). Raises `ValueError` if it is no protobuf."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            return {
                _text(data, entry, _KEY): _text(data, entry, _VALUE)
                for entry in _messages(data, 0, len(data), _METADATA)
            }
        except IndexError:
            raise ValueError(f"{path}: its protobuf does not parse") from None


def _text(data: mmap.mmap, entry: tuple[int, int], field: int) -> str:
    return b"".join(data[a:b] for a, b in _messages(data, *entry, field)).decode()


def _hint(begin: bytes) -> str:
    if begin.startswith(b"version https://git-lfs"):
        return "it is a pointer of Git LFS: run 'git lfs pull'"
    return "is it another format, or a page that said why a download failed?"


def _locations(data: mmap.mmap) -> Iterator[str]:
    for graph_start, graph_end in _messages(data, 0, len(data), _GRAPH):
        for start, end in _messages(data, graph_start, graph_end, _INITIALIZER):
            for entry in _messages(data, start, end, _EXTERNAL):
                key = b"".join(data[a:b] for a, b in _messages(data, *entry, _KEY))
                if key == b"location":
                    yield "".join(data[a:b].decode() for a, b in _messages(data, *entry, _VALUE))


def _messages(data: mmap.mmap, at: int, end: int, wanted: int) -> Iterator[tuple[int, int]]:
    """Start and end of every length-delimited field with this number between `at` and `end`."""
    while at < end:
        tag, at = _varint(data, at)
        field, kind = tag >> 3, tag & 7
        if kind == _BYTES:
            length, at = _varint(data, at)
            if at + length > end:
                raise ValueError("a field runs past its message")
            if field == wanted:
                yield at, at + length
            at += length
        elif kind == _VARINT:
            _, at = _varint(data, at)
        elif kind in (_FIXED64, _FIXED32):
            at += 8 if kind == _FIXED64 else 4
        else:
            raise ValueError(f"unknown wire type {kind}")


def _varint(data: mmap.mmap, at: int) -> tuple[int, int]:
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
