"""Arrays → one .npz, row by row: images of a whole data set need not fit into memory."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray


class ArchiveWriter:
    """Writes arrays into an uncompressed .npz, as numpy.savez does.

    Its dates are fixed, so that equal arrays make equal files.
    """

    def __init__(self, path: Path) -> None:
        self._archive = zipfile.ZipFile(path, "w", zipfile.ZIP_STORED)

    def __enter__(self) -> ArchiveWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._archive.close()

    def write(self, name: str, array: NDArray[Any]) -> None:
        self.write_rows(name, array, len(array))

    def write_rows(self, name: str, rows: Iterable[NDArray[Any]], count: int) -> None:
        """Write `count` rows of one shape and dtype as one array [count, …]."""
        entry = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
        with self._archive.open(entry, "w", force_zip64=True) as file:
            started = False
            for row in rows:
                value = np.asarray(row)
                if not started:
                    header = {"descr": npy.dtype_to_descr(value.dtype), "fortran_order": False,
                              "shape": (count, *value.shape)}  # fmt: skip
                    npy.write_array_header_2_0(file, header)
                    started = True
                file.write(np.ascontiguousarray(value).tobytes())
