"""Environments beside the present one: a package in another version, all others as they are here."""

from __future__ import annotations

import subprocess
import zipfile
from pathlib import Path

import pytest

from engineworks.errors import InputError
from engineworks.host.environments import check_requirement, make_environment


def wheel(folder: Path, name: str, version: str) -> None:
    """The smallest wheel: one module, and the metadata that pip wants (PyPA, Binary distribution format)."""
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as archive:
        archive.writestr(f"{name}.py", f"VERSION = '{version}'\n")
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")


@pytest.mark.slow
def test_an_environment_has_the_other_version_and_sees_everything_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel(tmp_path, "engineworks_probe", "2.5")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    said: list[str] = []
    python = make_environment(["engineworks-probe==2.5"], tmp_path / "environments", said.append)
    code = "import engineworks, engineworks_probe, numpy; print(engineworks_probe.VERSION)"
    done = subprocess.run([str(python), "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert (done.stdout.strip(), done.returncode) == ("2.5", 0), done.stderr
    assert make_environment(["engineworks-probe==2.5"], tmp_path / "environments", said.append) == python
    assert said == ["new environment with engineworks-probe==2.5"]
    with pytest.raises(InputError, match=r"pip cannot install engineworks-probe==9\.9: No matching distribution"):
        make_environment(["engineworks-probe==9.9"], tmp_path / "environments", said.append)


@pytest.mark.parametrize("text", ["onnxruntime", "onnxruntime>=1.2", "../wheel.whl", "a==1 --index-url x", "-r==1"])
def test_only_a_name_and_a_version_are_taken(text: str) -> None:
    with pytest.raises(InputError, match="no package with a version"):
        check_requirement(text)
