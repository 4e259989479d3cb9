"""Reading .npz files: right whatever else is open, on every Python; damaged and pickled ones are refused."""

from __future__ import annotations

import os
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engineworks.errors import SamplesError
from engineworks.recipe.npz import ArrayHeader, NpzReader, RowReader, read_arrays, read_headers
from engineworks.recipe.samples import open_samples
from engineworks.tensors import TensorSpec

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def faulty_seek(monkeypatch: pytest.MonkeyPatch) -> None:
    """The seek of python/cpython#127847, as Python 3.12.1 and 3.13.0 have it: from where the shared file was left."""
    right = zipfile.ZipExtFile.seek

    def seek(self: Any, offset: int, whence: int = os.SEEK_SET) -> int:
        step = offset - self.tell()
        if self._compress_type != zipfile.ZIP_STORED or step <= 0 or step + self._offset < len(self._readbuffer):
            return right(self, offset, whence)
        step -= len(self._readbuffer) - self._offset
        self._expected_crc = None
        with self._fileobj._lock:
            self._fileobj._file.seek(step, os.SEEK_CUR)
            self._fileobj._pos = self._fileobj._file.tell()
        self._left -= step
        self._readbuffer, self._offset = b"", 0
        return offset

    monkeypatch.setattr(zipfile.ZipExtFile, "seek", seek)


def test_the_fault_of_the_fixture_is_one(faulty_seek: None, tmp_path: Path) -> None:
    """Two open members of one archive, the second read first: the first one's rows are then other bytes."""
    np.savez(tmp_path / "a.npz", a=np.arange(4000), b=np.arange(4000) + 5000)
    with zipfile.ZipFile(tmp_path / "a.npz") as archive, archive.open("a.npy") as a, archive.open("b.npy") as b:
        a.read(128), b.read(128)
        a.seek(128 + 8 * 3000)
        assert np.frombuffer(a.read(8), np.int64)[0] != 3000


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
def test_arrays_that_are_open_together_do_not_disturb_each_other(faulty_seek: None, tmp_path: Path, write: Any) -> None:
    random = np.random.default_rng(0)
    x, y = random.normal(size=(300, 64)).astype(np.float32), random.integers(0, 9, (300, 7))
    fortran = np.asfortranarray(random.normal(size=(300, 5)))
    write(tmp_path / "a.npz", x=x, y=y, z=fortran, labels=np.arange(300))
    specs = [
        TensorSpec("x", "float32", ("n", 64)),
        TensorSpec("y", "int64", ("n", 7)),
        TensorSpec("z", "float64", ("n", 5)),
    ]
    samples = open_samples(tmp_path / "a.npz", specs, {}, samples=100, labels="labels")
    batches = list(samples.batches([1, 13]))
    for name, whole in (("x", x), ("y", y), ("z", fortran)):
        assert np.array_equal(np.concatenate([b[name] for b in batches]), whole[::3])
    assert np.array_equal(samples.read_labels(), np.arange(300)[::3])  # type: ignore[arg-type]


def test_whole_arrays_are_right_between_rows_of_others(faulty_seek: None, tmp_path: Path) -> None:
    arrays = {name: np.arange(5000) * scale for name, scale in (("a", 1), ("b", 2), ("run/c", 3))}
    np.savez(tmp_path / "a.npz", **arrays)
    rows = RowReader(tmp_path / "a.npz", "a")
    with NpzReader(tmp_path / "a.npz") as archive:
        for index in (0, 700, 4999):
            assert rows.rows([index])[0] == index
            assert np.array_equal(archive.read("run/c"), arrays["run/c"])
            assert np.array_equal(archive.read("b"), arrays["b"])
    rows.close()
    assert {name: array.tolist() for name, array in read_arrays(tmp_path / "a.npz").items()} == {
        name: array.tolist() for name, array in arrays.items()
    }


def test_a_member_that_ends_early_is_refused_in_one_sentence(tmp_path: Path) -> None:
    import io

    whole = io.BytesIO()
    np.save(whole, np.arange(100))
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("a.npy", whole.getvalue()[:-80])
    rows = RowReader(tmp_path / "a.npz", "a")
    assert rows.rows([89]).tolist() == [89]
    with pytest.raises(SamplesError, match=r"a\.npz: is not a \.npz file that can be read \('a' ends in row 95\)"):
        rows.rows([95])


def test_bytes_that_do_not_unpack_are_refused_in_one_sentence(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", a=np.random.default_rng(0).normal(size=1000))
    raw = bytearray((tmp_path / "a.npz").read_bytes())
    raw[200:260] = bytes(60)
    (tmp_path / "a.npz").write_bytes(bytes(raw))
    with pytest.raises(SamplesError, match="can be read"), NpzReader(tmp_path / "a.npz") as archive:
        archive.read("a")


def test_pickles_are_refused_without_running_them(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", a=np.array([{"a": 1}], dtype=object))
    for read in (read_headers, read_arrays):
        with pytest.raises(SamplesError, match="'a' holds pickled Python objects"):
            read(tmp_path / "a.npz")


def test_nothing_else_in_the_product_reads_npz_files() -> None:
    """`np.load` and `zipfile` elsewhere would bring the fault back."""
    found = [
        f"{path.relative_to(REPOSITORY)}:{number}"
        for folder in ("engineworks", "flows", "tasks")
        for path in sorted((REPOSITORY / folder).rglob("*.py"))
        if path.name != "npz.py"
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if re.search(r"\bnp\.load\(|\bnumpy\.load\(|ZipFile\((?!.*\"w\")|\.open\([^)]*\.npy\"?\)", line)
    ]
    # Writers open an archive with mode "w" only; bundles hold scripts that run without this package, one array at a time.
    left_out = ("recipe/datasets/rows.py", "steps/blame/bundle.py")
    assert [place for place in found if not place.partition("/")[2].startswith(left_out)] == []


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "i1", "i8", "u2", "?", ">f4", "U3", "c8"])
@pytest.mark.parametrize("shape", [(), (3,), (2, 0), (2, 3, 4)])
def test_headers_are_those_that_numpy_reads(tmp_path: Path, dtype: str, shape: tuple[int, ...]) -> None:
    array = np.zeros(shape, dtype)
    np.savez(tmp_path / "a.npz", x=array, t=np.zeros((4, 3), dtype).T)
    header = read_headers(tmp_path / "a.npz")
    assert header["x"] == ArrayHeader(array.dtype.name, array.dtype.itemsize, shape, fortran=False)
    assert header["t"] == ArrayHeader(array.dtype.name, array.dtype.itemsize, (3, 4), fortran=True)
