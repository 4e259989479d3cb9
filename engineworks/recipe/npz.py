"""Reading .npz files: the only module that does, so that no open member can disturb another.

The first releases of Python 3.12 and 3.13 have a bug (python/cpython#127847). `ZipExtFile.seek` of a stored member
moves relative to the position that another open member of the same archive left, and then reads wrong bytes. So this
module reads whole arrays from start to end without a seek, and opens a separate file handle to read an array by rows.
It refuses pickled arrays, because reading them could run code.
"""

from __future__ import annotations

import io
import lzma
import math
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import IO, Any

from engineworks.errors import SamplesError
from engineworks.host.lazy import Array, np
from engineworks.host.regular_files import check_regular, open_regular

SUFFIX = ".npy"
REASONS = (
    zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, RuntimeError, EOFError, OSError, ValueError,
    OverflowError,
)  # fmt: skip
"""Errors that `zipfile` and its unpackers raise for a file that is damaged, encrypted or uses unknown packing."""

MOST_HEADER_BYTES = 10_000
"""As in NumPy, which parses a header as Python."""


@dataclass(frozen=True)
class ArrayHeader:
    """One array of the file. itemsize: bytes of an element."""

    dtype: str
    itemsize: int
    shape: tuple[int, ...]
    fortran: bool


class NpzReader:
    """An open .npz file. Raises `SamplesError` for a file that cannot be read, and for pickled arrays."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with _readable(path):
            self._archive = _archive(path)
        self.names = [n.removesuffix(SUFFIX) for n in self._archive.namelist() if n.endswith(SUFFIX)]

    def __enter__(self) -> NpzReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._archive.close()

    def header(self, name: str) -> ArrayHeader:
        with _readable(self.path), self._archive.open(f"{name}{SUFFIX}") as file:
            header = _plain_header(file)
            at = file.tell()
        if header is None:
            with _readable(self.path), self._archive.open(f"{name}{SUFFIX}") as file:
                dtype, shape, fortran = _parse_header(self.path, name, file)
                at = file.tell()
            header = ArrayHeader(dtype.name, dtype.itemsize, shape, fortran)
        held = self._archive.getinfo(f"{name}{SUFFIX}").file_size - at
        needed = header.itemsize * math.prod(header.shape)
        if needed != held:
            raise SamplesError(
                f"{self.path}: '{name}' is {header.dtype}{list(header.shape)}, {needed:,} bytes, but {held:,} bytes "
                "are there",
                hint="the file is damaged: write it again",
            )
        return header

    def read(self, name: str) -> Array:
        """The whole array, with the shape and dtype in the file. Raises `KeyError` if the file has no such array."""
        from numpy.lib import format as npy

        self.header(name)  # raises this module's own message about the array
        with _readable(self.path), self._archive.open(f"{name}{SUFFIX}") as file:
            array: Array = npy.read_array(file, allow_pickle=False)
        return array

    def rows(self, name: str) -> RowReader:
        """The array row by row, until the returned reader is closed."""
        return RowReader(self.path, name)


class RowReader:
    """Rows of one array (axis 0) in ascending order, without holding the array; it has its own file handle."""

    def __init__(self, path: Path, name: str) -> None:
        self._path, self._name = path, name
        self._loaded: Array | None = None
        with _readable(path):
            self._file = _open_member(path, f"{name}{SUFFIX}")
            self._dtype, shape, fortran = _parse_header(path, name, self._file)
        self._shape = shape[1:]
        self._row_bytes = self._dtype.itemsize * math.prod(self._shape)
        self._next = 0
        if fortran:  # rare, and its rows are not contiguous: read it whole
            with NpzReader(path) as reader:
                self._loaded = reader.read(name)

    def rows(self, indices: Sequence[int]) -> Array:
        """The rows [len(indices), …] in the array's dtype. Indices must ascend, also from call to call."""
        if self._loaded is not None:
            return self._loaded[list(indices)]
        for before, index in pairwise((self._next - 1, *indices)):
            if index <= before:
                raise ValueError(f"row {index} comes after row {before}")
        block = np.empty((len(indices), *self._shape), self._dtype)
        with _readable(self._path):
            for slot, index in enumerate(indices):
                _skip(self._file, (index - self._next) * self._row_bytes)
                raw = self._file.read(self._row_bytes)
                if len(raw) < self._row_bytes:
                    raise EOFError(f"'{self._name}' ends in row {index}")
                block[slot] = np.frombuffer(raw, self._dtype).reshape(self._shape)
                self._next = index + 1
        return block

    def close(self) -> None:
        self._file.close()


class _Stored(io.RawIOBase):
    """The bytes of an uncompressed member, with its own handle."""

    def __init__(self, path: Path, info: zipfile.ZipInfo) -> None:
        self._file = open_regular(path)
        self._file.seek(info.header_offset + _NAME_LENGTHS_AT)
        name, extra = struct.unpack("<HH", self._file.read(4))
        self._file.seek(name + extra, os.SEEK_CUR)
        self._start = self._file.tell()
        self._end = self._start + info.file_size

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        left = max(0, self._end - self._file.tell())
        return self._file.read(left if size < 0 else min(size, left))

    def tell(self) -> int:
        return self._file.tell() - self._start

    def skip(self, size: int) -> None:
        self._file.seek(size, os.SEEK_CUR)

    def close(self) -> None:
        self._file.close()
        super().close()


_NAME_LENGTHS_AT = 26
"""Offset in a local zip header of the lengths of the name and the extra field (PKWARE's APPNOTE.TXT, 4.3.7).

The data follows both.
"""

_ENCRYPTED = 1

_PIECE = 1 << 20


def _archive(path: Path) -> zipfile.ZipFile:
    check_regular(path, path.stat().st_mode)
    return zipfile.ZipFile(path)


def _open_member(path: Path, member: str) -> IO[bytes] | _Stored:
    """A member with its own file handle, which never needs `ZipExtFile.seek`."""
    with _archive(path) as archive:
        info = archive.getinfo(member)
        if info.compress_type == zipfile.ZIP_STORED and not info.flag_bits & _ENCRYPTED:
            return _Stored(path, info)
        return archive.open(info)  # keeps the archive's handle until it is closed itself


def _skip(file: IO[bytes] | _Stored, size: int) -> None:
    """Skip this many bytes."""
    if isinstance(file, _Stored):
        return file.skip(size)
    while size > 0 and (piece := file.read(min(size, _PIECE))):
        size -= len(piece)
    return None


def read_headers(path: Path) -> dict[str, ArrayHeader]:
    """dtype and shape of every array, without reading their contents."""
    with NpzReader(path) as archive:
        headers = {name: archive.header(name) for name in archive.names}
    if not headers:
        raise SamplesError(f"{path}: holds no arrays", hint="write it with numpy.savez")
    return headers


def read_arrays(path: Path) -> dict[str, Array]:
    """All arrays of a file that fits into memory."""
    with NpzReader(path) as archive:
        return {name: archive.read(name) for name in archive.names}


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise SamplesError(f"{path}: no such file") from None
    except REASONS as error:
        raise SamplesError(
            f"{path}: is not a .npz file that can be read ({error})", hint="write it with numpy.savez"
        ) from None


_PLAIN = re.compile(
    rb"\{'descr': '[<|](?P<dtype>f[248]|[iu][1248]|b1)', 'fortran_order': (?P<fortran>True|False), "
    rb"'shape': \((?P<shape>[0-9, ]*)\), \} *\n"
)
"""What `numpy.save` writes for plain numbers."""

_NAMES = {"f": "float", "i": "int", "u": "uint"}


def _plain_header(file: IO[bytes]) -> ArrayHeader | None:
    """The header if it is one that `numpy.save` writes for plain numbers, without importing NumPy; None if not."""
    start = file.read(10)
    if len(start) < 10 or not start.startswith(b"\x93NUMPY\x01\x00"):
        return None
    found = _PLAIN.fullmatch(file.read(int.from_bytes(start[8:], "little")))
    if found is None:
        return None
    kind, size = chr(found["dtype"][0]), int(found["dtype"][1:])
    shape = tuple(int(number) for number in found["shape"].split(b",") if number.strip())
    dtype = f"{_NAMES[kind]}{8 * size}" if kind in _NAMES else "bool"
    return ArrayHeader(dtype, size, shape, found["fortran"] == b"True")


def _parse_header(path: Path, name: str, file: IO[bytes] | _Stored) -> tuple[Any, tuple[int, ...], bool]:
    """dtype, shape and order of an array. Raises `SamplesError` if the header does not parse."""
    from numpy.lib import format as npy

    try:
        version = npy.read_magic(file)
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, fortran, dtype = read(file, max_header_size=MOST_HEADER_BYTES)
    except Exception as error:  # NumPy parses it as Python, which has many errors
        raise SamplesError(f"{path}: '{name}{SUFFIX}' does not parse: {error}") from error
    if dtype.hasobject:
        raise SamplesError(
            f"{path}: '{name}' holds pickled Python objects, which could run code",
            hint="save plain numbers: numpy.savez of arrays with a numeric dtype",
        )
    if min(shape, default=0) < 0:
        raise SamplesError(f"{path}: '{name}' has shape {list(shape)}", hint="the file is damaged: write it again")
    return dtype, shape, fortran
