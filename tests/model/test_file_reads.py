"""The files that the user's code reads."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from engineworks.model.export.from_torch import recorded_reads, undeclared_reads


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "weights.bin").write_bytes(b"1")
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "part.bin").write_bytes(b"2")
    return tmp_path


def test_files_are_recorded_however_they_are_opened(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)
    with recorded_reads() as reads:
        Path("weights.bin").read_bytes()
        os.close(os.open(root / "more" / "part.bin", os.O_RDONLY))
    assert {root / "weights.bin", root / "more" / "part.bin"} <= reads


def test_what_is_only_written_or_read_outside_of_the_block_or_missing_is_not_recorded(root: Path) -> None:
    with recorded_reads() as reads:
        (root / "made.bin").write_bytes(b"3")
        with pytest.raises(FileNotFoundError):
            (root / "missing.bin").read_bytes()
    (root / "weights.bin").read_bytes()
    assert undeclared_reads(reads, root, []) == []


def test_reads_are_recorded_when_the_block_raises(root: Path) -> None:
    recording = recorded_reads()
    seen = recording.__enter__()
    (root / "weights.bin").read_bytes()
    recording.__exit__(ZeroDivisionError, ZeroDivisionError(), None)
    assert root / "weights.bin" in seen


def test_only_undeclared_files_are_told(root: Path) -> None:
    reads = {root / "weights.bin", root / "more" / "part.bin"}
    assert undeclared_reads(reads, root, [root / "weights.bin"]) == [root / "more" / "part.bin"]


def test_a_declared_folder_covers_what_is_in_it(root: Path) -> None:
    assert undeclared_reads({root / "more" / "part.bin"}, root, [root / "more"]) == []


def test_bytecode_of_a_declared_source_is_not_told(root: Path) -> None:
    bytecode = root / "__pycache__" / f"m.{sys.implementation.cache_tag}.pyc"
    assert undeclared_reads({bytecode}, root, [root / "m.py"]) == []
    assert undeclared_reads({bytecode}, root, [root / "other.py"]) == [bytecode]


def test_python_itself_the_system_and_temporary_files_do_not_count(root: Path) -> None:
    import json

    reads = {Path(json.__file__), Path("/etc/passwd"), Path("/proc/self/status"), root / "weights.bin"}
    assert undeclared_reads(reads, root / "more", []) == []  # weights.bin lies in the temporary folder, outside of root


def test_a_file_outside_of_the_recipe_counts(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engineworks.model.export.from_torch._exempt_folders", list)  # the test lies below /tmp
    assert undeclared_reads({root / "weights.bin"}, root / "more", []) == [root / "weights.bin"]


def test_a_library_beside_the_recipe_that_is_installed_does_not_count() -> None:
    """A virtual environment inside of the recipe's folder."""
    code = """
        import sys, pathlib, numpy
        from engineworks.model.export.from_torch import undeclared_reads
        print(undeclared_reads({pathlib.Path(numpy.__file__)}, pathlib.Path(sys.prefix).parent, []))
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
