"""The code that a package brings along."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from zipimport import zipimporter

import pytest

from engineworks.package.runtime import runtime_modules, write_python_model


def errors_in(folder: Path) -> zipimporter:
    folder.mkdir()
    write_python_model(folder, folder, "onnxruntime", {})
    return zipimporter(f"{folder / 'runtime.zip'}/engineworks")


def test_the_model_starts_from_compiled_code_and_the_same_modules_give_the_same_bytes(tmp_path: Path) -> None:
    first = errors_in(tmp_path / "a")
    assert Path(first.get_filename("errors")).name == "errors.pyc"
    compiled = first.get_code("errors")
    assert compiled is not None
    assert compiled.co_filename == "engineworks/errors.py"
    errors_in(tmp_path / "b")
    assert (tmp_path / "a" / "runtime.zip").read_bytes() == (tmp_path / "b" / "runtime.zip").read_bytes()


def test_another_version_of_python_compiles_the_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "MAGIC_NUMBER", b"\0\0\r\n")
    importer = errors_in(tmp_path / "a")
    assert Path(importer.get_filename("errors")).name == "errors.py"
    assert importer.get_code("errors") is not None


def test_only_what_runs_is_brought_along() -> None:
    rooms = {name.split("/")[1] for name in runtime_modules("onnxruntime") if name.count("/") > 1}
    assert rooms == {"engines", "host", "model", "package", "store"}
