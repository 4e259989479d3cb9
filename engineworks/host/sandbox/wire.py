"""Messages to and from a sandbox: arrays, then one JSON object, on a pipe that user code may write anything to.

A message is a sequence of frames. A frame is a line of JSON; one that announces an array, such as
{"array": "logits", "dtype": "<f4", "shape": [8, 10]}, is followed by the array's bytes in C order. Any other object
ends the message.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

MAX_LINE_BYTES = 1 << 22
MAX_ARRAYS = 1 << 16
NUMBERS = "biufc"
"""NumPy's kinds of dtypes that an answer may hold: no objects, which are pickles, and no text."""

FILE_DTYPE = np.dtype(np.uint8)
BLOCK_BYTES = 1 << 20


class GarbledError(Exception):
    """An answer that is no message; its text completes "its answer …"."""


def array_frame(name: str, array: Array) -> Iterator[memoryview]:
    """Yield an array as a frame."""
    array = np.ascontiguousarray(array).reshape(array.shape)  # the former turns a scalar into one row
    yield _header(name, array.dtype, array.shape)
    if array.size:
        yield memoryview(array.reshape(-1).view(np.uint8).data)


def file_frame(name: str, path: Path) -> Iterator[memoryview]:
    """Yield a file's bytes as a uint8 array."""
    with path.open("rb") as file:
        yield _header(name, FILE_DTYPE, (path.stat().st_size,))
        while block := file.read(BLOCK_BYTES):
            yield memoryview(block)


def end_frame(value: Mapping[str, Any]) -> memoryview:
    """Return the end of a message."""
    return memoryview(json.dumps(value).encode() + b"\n")


def _header(name: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> memoryview:
    return end_frame({"array": name, "dtype": dtype.str, "shape": list(shape)})


def read_message(stream: BinaryIO) -> tuple[dict[str, Array], dict[str, Any]] | None:
    """Return the arrays and the object of one message from our own process, None at the end of the stream."""
    arrays: dict[str, Array] = {}
    while line := stream.readline():
        header = json.loads(line)
        if "array" not in header:
            return arrays, header
        raw = bytearray(math.prod(header["shape"]) * np.dtype(header["dtype"]).itemsize)
        view = memoryview(raw)
        while view:
            view = view[stream.readinto(view) :]  # type: ignore[attr-defined]
        arrays[header["array"]] = np.frombuffer(raw, header["dtype"]).reshape(header["shape"])
    return None


class Answer:
    """A message from a sandbox, checked while it arrives; its arrays lie in an unnamed file.

    value: the object that ends it. complete: whether it has arrived. scratch: the folder of that file.
    """

    def __init__(self, max_bytes: int, scratch: Path | None = None) -> None:
        self.value: dict[str, Any] = {}
        self.complete = False
        self._max_bytes, self._scratch = max_bytes, scratch
        self._line = bytearray()
        self._left = self._bytes = 0
        self._places: dict[str, tuple[np.dtype[Any], tuple[int, ...], int]] = {}
        self._file: IO[bytes] | None = None

    def feed(self, data: bytes) -> None:
        """Take the next bytes. Raises `GarbledError`. Whatever follows the message is ignored."""
        view = memoryview(data)
        while view and not self.complete:
            if self._left:
                part = view[: self._left]
                self._open().write(part)
                self._left -= len(part)
            else:
                part = view[: (data.find(b"\n", len(data) - len(view)) + 1 or len(data)) - (len(data) - len(view))]
                self._line += part
                if len(self._line) > MAX_LINE_BYTES:
                    raise GarbledError(f"is longer than {MAX_LINE_BYTES >> 20} MiB")
                if self._line.endswith(b"\n"):
                    self._take(_object(bytes(self._line)))
                    self._line.clear()
            view = view[len(part) :]

    @property
    def names(self) -> tuple[str, ...]:
        """Return the arrays' names in the order of their arrival."""
        return tuple(self._places)

    def array(self, name: str) -> Array:
        """Return an array. Raises `GarbledError` where there is none of this name."""
        dtype, shape, start = self._place(name)
        self._open().seek(start)
        data = self._open().read(math.prod(shape) * dtype.itemsize)
        return np.frombuffer(bytearray(data), dtype).reshape(shape)

    def save(self, name: str, path: Path) -> None:
        """Write a file that came as uint8. Raises `GarbledError` as `array` does."""
        dtype, shape, start = self._place(name)
        if dtype != FILE_DTYPE or len(shape) != 1:
            raise GarbledError(f"holds no file '{name}'")
        self._open().seek(start)
        left = shape[0]
        with path.open("wb") as file:
            while left:
                block = self._open().read(min(left, BLOCK_BYTES))
                file.write(block)
                left -= len(block)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def _take(self, header: dict[str, Any]) -> None:
        if "array" not in header:
            self.value, self.complete = header, True
            return
        name, dtype, shape = _announced(header)
        size = math.prod(shape) * dtype.itemsize
        if name in self._places or len(self._places) == MAX_ARRAYS or self._bytes + size > self._max_bytes:
            raise GarbledError(f"holds two arrays '{name[:50]}' or more than {self._max_bytes / 2**20:.0f} MiB")
        self._places[name] = (dtype, shape, self._bytes)
        self._bytes += size
        self._left = size

    def _place(self, name: str) -> tuple[np.dtype[Any], tuple[int, ...], int]:
        if name not in self._places:
            raise GarbledError(f"lacks '{name}'")
        return self._places[name]

    def _open(self) -> IO[bytes]:
        if self._file is None:
            self._file = tempfile.TemporaryFile(dir=self._scratch)
        return self._file


def require_finite(value: object) -> None:
    """Raise `GarbledError` for a number that JSON cannot hold."""
    if isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            require_finite(part)
    elif isinstance(value, int | float) and not abs(value) < math.inf:
        raise GarbledError("holds a number that is not finite")


def _object(line: bytes) -> dict[str, Any]:
    try:
        value = json.loads(line)
        json.dumps(value, ensure_ascii=False).encode()  # a lone surrogate can be neither printed nor stored
    except (ValueError, RecursionError):
        raise GarbledError("cannot be read") from None
    if not isinstance(value, dict):
        raise GarbledError("cannot be read")
    return value


def _announced(header: Mapping[str, Any]) -> tuple[str, np.dtype[Any], tuple[int, ...]]:
    name, shape = header["array"], header.get("shape")
    try:
        dtype = np.dtype(str(header.get("dtype")))
    except (TypeError, ValueError, SyntaxError):
        raise GarbledError("has an array of an unknown dtype") from None
    if dtype.kind not in NUMBERS:
        raise GarbledError(f"has an array of dtype {dtype}, which holds no numbers")
    if not isinstance(name, str) or not isinstance(shape, list) or len(shape) > 32:
        raise GarbledError("has an array without name or shape")
    if not all(type(length) is int and 0 <= length < 2**48 for length in shape):
        raise GarbledError(f"has an array '{name[:50]}' of an impossible shape")
    return name, dtype, tuple(shape)
