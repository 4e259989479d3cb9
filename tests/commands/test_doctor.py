"""What doctor says of the GPU of this host and of the targets that it serves."""

from __future__ import annotations

import re
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

from engineworks.commands import doctor
from engineworks.commands.doctor import Findings, TargetHere, examine
from engineworks.host.gpu import Gpu
from engineworks.settings import read_settings

H100 = Gpu("NVIDIA H100", "9.0", "580.65.06", "13.0", 81559)
TARGETS = """targets:
  cpu: {backend: onnxruntime}
  h100: {backend: tensorrt_rtx, compute_capability: [9.0]}
  portable: {backend: tensorrt_rtx, compute_capability: [8.0, 8.9]}
"""


def found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpu: Gpu | None) -> Findings:
    (tmp_path / "_targets.yaml").write_text(TARGETS, encoding="utf-8")
    monkeypatch.setenv("ENGINEWORKS_ARTIFACTS", str(tmp_path / "artifacts"))
    monkeypatch.setattr(doctor, "first_gpu", lambda: gpu)
    return examine(read_settings(), tmp_path)


def test_the_gpu_is_shown_with_the_targets_that_it_serves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    findings = found(tmp_path, monkeypatch, H100)
    assert findings.to_json()["gpu"] == {
        "gpu": "NVIDIA H100", "compute_capability": "9.0", "driver": "580.65.06", "cuda": "13.0", "memory_mib": 81559,
    }  # fmt: skip
    assert findings.gpu_says == "it is the GPU of h100: build with --only '*/*/h100'"
    doctor.print_findings(findings)
    line = "GPU: NVIDIA H100, compute capability 9.0, driver 580.65.06, CUDA 13.0, 81559 MiB; it is the GPU of h100"
    assert line in capsys.readouterr().out.replace("\n", " ")


def test_a_gpu_that_no_target_names_says_how_to_add_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    findings = found(tmp_path, monkeypatch, Gpu("NVIDIA B200", "10.0", "580.1", "13.0"))
    assert "compute_capability: [10.0]" in findings.gpu_says
    assert "too old" in found(tmp_path, monkeypatch, Gpu("Tesla K80", "", "470.1", "")).gpu_says


def test_a_host_without_a_gpu_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    findings = found(tmp_path, monkeypatch, None)
    assert findings.to_json()["gpu"] is None
    doctor.print_findings(findings)
    assert "GPU: none found" in capsys.readouterr().out


def test_a_target_that_runs_unwatched_says_why_its_figures_are_not_to_be_trusted(
    capsys: pytest.CaptureFixture[str],
) -> None:
    here = TargetHere("h100", None, None, "the GPU's clocks cannot be watched")
    doctor.print_findings(Findings({}, (here, TargetHere("cpu", None, "no", "no")), ()))
    out = capsys.readouterr().out
    assert "yes, but the GPU's clocks cannot be watched" in out
    assert "yes, but no" not in out


def test_doctor_names_the_supported_versions_of_python_and_warns_of_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    findings = replace(found(tmp_path, monkeypatch, None), python="3.12.1")
    doctor.print_findings(findings)
    assert "Python 3.12.1; supported: 3.11, 3.12, 3.13" in capsys.readouterr().out
    other = replace(findings, python="3.14.0")
    doctor.print_findings(other)
    assert "warning: Python 3.14.0 is not supported" in capsys.readouterr().out.replace("\n", " ")
    assert not other.conflicts
    assert other.to_json()["python"] == {"version": "3.14.0", "supported": ["3.11", "3.12", "3.13"]}


def test_the_supported_versions_are_those_of_the_package() -> None:
    project = tomllib.loads(Path(__file__).parents[2].joinpath("pyproject.toml").read_text())["project"]
    prefix = "Programming Language :: Python :: "
    named = [c.removeprefix(prefix) for c in project["classifiers"] if c.startswith(prefix)]
    assert tuple(named) == doctor.PYTHONS


def test_no_version_that_the_package_itself_asks_for_is_a_conflict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first version that doctor refuses of a library is the one where pyproject's own range ends."""
    assert found(tmp_path, monkeypatch, None).conflicts == ()
    project = tomllib.loads(Path(__file__).parents[2].joinpath("pyproject.toml").read_text())["project"]
    for name, (bad, _, instead) in doctor.TOO_NEW.items():
        (wanted,) = (r for r in project["dependencies"] if re.match(rf"{name}[<>=]", r))
        assert f"<{'.'.join(map(str, bad))}" in wanted.replace(f"{name}", "")
        assert instead == f"{name}<{'.'.join(map(str, bad))}"
