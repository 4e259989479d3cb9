"""`make setup`: the virtual environment is of the Python that was asked for, and second runs do nothing."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]

FAKE = """#!/bin/sh
# A Python {version}: knows its version, makes environments, and installs nothing.
case "$1 $2" in
  "-c "*version_info*) exit {too_old} ;;
  "-c "*) echo {version} ;;
  "-m venv") rm -rf .venv; mkdir -p .venv/bin; cp "$0" .venv/bin/python; echo made >> log ;;
  "-m pip") echo installed >> log ;;
esac
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("Makefile", "pyproject.toml", "requirements.txt"):
        shutil.copy(REPOSITORY / name, tmp_path / name)
    for version, too_old in (("3.10.2", 1), ("3.11.7", 0), ("3.12.1", 0), ("3.12.4", 0)):
        path = tmp_path / f"python{version}"
        path.write_text(FAKE.format(version=version, too_old=too_old))
        path.chmod(0o755)
    return tmp_path


def setup(folder: Path, *words: str) -> list[str]:
    """What was made and installed."""
    (folder / "log").write_text("")
    subprocess.run(
        ["make", "setup", *words], cwd=folder, check=True, capture_output=True, env={"PATH": "/usr/bin:/bin"}
    )
    return (folder / "log").read_text().split()


def version(folder: Path) -> str:
    return subprocess.run([folder / ".venv/bin/python", "-c", ""], capture_output=True, text=True).stdout.strip()


def test_another_python_makes_the_environment_again(folder: Path) -> None:
    assert setup(folder, "PYTHON=./python3.11.7") == ["made", "installed", "installed"]
    assert version(folder) == "3.11.7"
    for other in ("3.12.1", "3.12.4"):
        assert setup(folder, f"PYTHON=./python{other}") == ["made", "installed", "installed"]
        assert version(folder) == other


def test_a_second_run_does_nothing_with_or_without_the_same_python(folder: Path) -> None:
    setup(folder, "PYTHON=./python3.12.1")
    assert setup(folder, "PYTHON=./python3.12.1") == []
    assert setup(folder) == []
    assert version(folder) == "3.12.1"


def test_new_requirements_are_installed_into_the_environment_that_is_there(folder: Path) -> None:
    setup(folder, "PYTHON=./python3.12.1")
    (folder / "requirements.txt").write_text("other\n")
    assert setup(folder) == ["installed", "installed"]
    assert version(folder) == "3.12.1"


def test_a_python_that_is_too_old_makes_nothing(folder: Path) -> None:
    with pytest.raises(subprocess.CalledProcessError):
        setup(folder, "PYTHON=./python3.10.2")
    assert not (folder / ".venv").exists()
