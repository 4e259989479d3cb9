"""What is said of the processor and the GPU, from the texts that Linux and the driver give."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from engineworks.backends import _cpu, _gpu


def cpuinfo(count: int, *, cores: int, sockets: int = 1, flags: str = "sse2 avx2 avx512f avx512_vnni") -> str:
    """/proc/cpuinfo of `count` logical processors that share `cores` cores on each socket."""
    blocks = [
        f"processor\t: {i}\nmodel name\t: Test CPU @ 2 GHz\nphysical id\t: {i % sockets}\n"
        f"core id\t\t: {i // sockets % cores}\nflags\t\t: {flags}"
        for i in range(count)
    ]
    return "\n\n".join(blocks) + "\n"


def test_two_threads_of_one_core_count_once() -> None:
    assert _cpu.physical_cores(cpuinfo(8, cores=4), set(range(8))) == 4
    assert _cpu.physical_cores(cpuinfo(16, cores=4, sockets=2), set(range(16))) == 8


def test_only_cores_that_the_process_may_use_count() -> None:
    assert _cpu.physical_cores(cpuinfo(8, cores=4), {0, 4}) == 1
    assert _cpu.physical_cores(cpuinfo(8, cores=4), {0, 1}) == 2


def test_a_processor_that_names_no_cores_has_one_for_each_thread() -> None:
    arm = "processor\t: 0\nFeatures\t: fp asimddp sve\n\nprocessor\t: 1\nFeatures\t: fp asimddp sve\n"
    assert _cpu.physical_cores(arm, {0, 1}) == 2
    assert _cpu.instruction_sets(arm) == "asimddp sve"
    assert _cpu.physical_cores("", {0, 1, 2}) == 3


def test_the_processor_is_described_by_name_and_instruction_sets() -> None:
    assert _cpu.processor_name(cpuinfo(2, cores=2)) == "Test CPU @ 2 GHz"
    assert _cpu.instruction_sets(cpuinfo(2, cores=2)) == "avx2 avx512f avx512_vnni"


@pytest.mark.parametrize(
    ("text", "cores"), [("200000 100000\n", 2), ("150000 100000", 2), ("max 100000", None), ("", None)]
)
def test_a_containers_quota_counts_in_whole_cores(text: str, cores: int | None) -> None:
    assert _cpu.quota_cores(text) == cores


def test_this_host_is_described() -> None:
    described = _cpu.describe()
    assert described["processor"]
    assert 1 <= int(described["cores"]) <= len(os.sched_getaffinity(0))


@pytest.fixture
def nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tool that answers as the driver's does: device 0 is an H100, device 1 a 4090, others there are not."""
    tool = tmp_path / "nvidia-smi"
    tool.write_text(
        '#!/bin/sh\ncase "$2" in\n'
        '0|GPU-abc) echo "NVIDIA H100 80GB HBM3, 9.0, 580.65.06";;\n'
        '1) echo "NVIDIA GeForce RTX 4090, 8.9, 580.65.06";;\n'
        "*) echo 'No devices were found'; exit 6;;\nesac\n",
        encoding="utf-8",
    )
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    return tool


@pytest.mark.parametrize(
    ("visible", "name"),
    [(None, "NVIDIA H100 80GB HBM3"), ("1,0", "NVIDIA GeForce RTX 4090"), ("GPU-abc", "NVIDIA H100 80GB HBM3")],
)
def test_the_gpu_is_the_first_visible_one(
    nvidia_smi: Path, monkeypatch: pytest.MonkeyPatch, visible: str | None, name: str
) -> None:
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    gpu = _gpu.first_gpu()
    assert gpu is not None
    assert (gpu.name, gpu.driver) == (name, "580.65.06")


@pytest.mark.parametrize("visible", ["", "7", "-1"])
def test_there_is_no_gpu_where_none_is_visible(nvidia_smi: Path, monkeypatch: pytest.MonkeyPatch, visible: str) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert _gpu.first_gpu() is None


def test_there_is_no_gpu_where_there_is_no_driver(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert _gpu.first_gpu() is None
