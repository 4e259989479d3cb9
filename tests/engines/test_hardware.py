"""What is said of the processor and the GPU, from the texts that Linux and the driver give."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from engineworks.host import cpu
from engineworks.host import gpu as _gpu


def cpuinfo(count: int, *, cores: int, sockets: int = 1, flags: str = "sse2 avx2 avx512f avx512_vnni") -> str:
    """/proc/cpuinfo of `count` logical processors that share `cores` cores on each socket."""
    blocks = [
        f"processor\t: {i}\nmodel name\t: Test CPU @ 2 GHz\nphysical id\t: {i % sockets}\n"
        f"core id\t\t: {i // sockets % cores}\nflags\t\t: {flags}"
        for i in range(count)
    ]
    return "\n\n".join(blocks) + "\n"


def test_two_threads_of_one_core_count_once() -> None:
    assert cpu.physical_cores(cpuinfo(8, cores=4), set(range(8))) == 4
    assert cpu.physical_cores(cpuinfo(16, cores=4, sockets=2), set(range(16))) == 8


def test_only_cores_that_the_process_may_use_count() -> None:
    assert cpu.physical_cores(cpuinfo(8, cores=4), {0, 4}) == 1
    assert cpu.physical_cores(cpuinfo(8, cores=4), {0, 1}) == 2


def test_a_processor_that_names_no_cores_has_one_for_each_thread() -> None:
    arm = "processor\t: 0\nFeatures\t: fp asimddp sve\n\nprocessor\t: 1\nFeatures\t: fp asimddp sve\n"
    assert cpu.physical_cores(arm, {0, 1}) == 2
    assert cpu.instruction_sets(arm) == "asimddp sve"
    assert cpu.physical_cores("", {0, 1, 2}) == 3


def test_the_processor_is_described_by_name_and_instruction_sets() -> None:
    assert cpu.processor_name(cpuinfo(2, cores=2)) == "Test CPU @ 2 GHz"
    assert cpu.instruction_sets(cpuinfo(2, cores=2)) == "avx2 avx512f avx512_vnni"


@pytest.mark.parametrize(
    ("text", "cores"), [("200000 100000\n", 2), ("150000 100000", 2), ("max 100000", None), ("", None)]
)
def test_a_containers_quota_counts_in_whole_cores(text: str, cores: int | None) -> None:
    assert cpu.quota_cores(text) == cores


@pytest.mark.parametrize(("asked", "threads"), [(0, 3), (2, 2)])
def test_a_session_beside_others_takes_the_containers_cores_and_waits_without_spinning(
    monkeypatch: pytest.MonkeyPatch, asked: int, threads: int
) -> None:
    import onnxruntime

    monkeypatch.setattr(cpu, "usable_cores", lambda: 3)
    options = onnxruntime.SessionOptions()
    cpu.limit_threads(options, asked)
    assert options.intra_op_num_threads == threads
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"


def test_this_host_is_described() -> None:
    described = cpu.describe()
    assert described["processor"]
    assert 1 <= int(described["cores"]) <= len(os.sched_getaffinity(0))


ROWS = {
    "0": {
        "name": "NVIDIA H100 80GB HBM3",
        "compute_cap": "9.0",
        "driver_version": "580.65.06",
        "memory.total": "81559",
    },
    "1": {
        "name": "NVIDIA GeForce RTX 4090",
        "compute_cap": "8.9",
        "driver_version": "580.65.06",
        "memory.total": "24564",
    },
    "2": {"name": "Tesla K80", "driver_version": "470.256.02", "memory.total": "[N/A]"},
}
"""Devices by index; the last one's driver is too old to know compute_cap."""

NVIDIA_SMI = """#!{python}
import sys
rows = {rows!r}
rows["GPU-abc"] = rows["0"]
row = rows.get(sys.argv[2])
if row is None:
    sys.exit("No devices were found")
fields = next(a for a in sys.argv if a.startswith("--query-gpu=")).partition("=")[2].split(",")
unknown = [f for f in fields if f not in row]
if unknown:
    print(f'Field "{{unknown[0]}}" is not a valid field to query.')
    sys.exit(2)
print(", ".join(row[f] for f in fields))
"""


@pytest.fixture
def nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tool on the path that answers as the driver's does."""
    tool = tmp_path / "nvidia-smi"
    tool.write_text(NVIDIA_SMI.format(python=sys.executable, rows=ROWS), encoding="utf-8")
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


def test_the_gpu_says_its_compute_capability_and_memory(nvidia_smi: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    gpu = _gpu.first_gpu()
    assert gpu is not None
    assert (gpu.compute_capability, gpu.memory_mib) == ("9.0", 81559)
    assert "memory_mib" not in gpu.to_json()  # no part of a measurement's key


def test_a_driver_too_old_to_know_the_compute_capability_is_still_named(
    nvidia_smi: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2")
    gpu = _gpu.first_gpu()
    assert gpu is not None
    assert (gpu.name, gpu.driver, gpu.compute_capability, gpu.memory_mib) == ("Tesla K80", "470.256.02", "", None)


@pytest.mark.parametrize("visible", ["", "7", "-1"])
def test_there_is_no_gpu_where_none_is_visible(nvidia_smi: Path, monkeypatch: pytest.MonkeyPatch, visible: str) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert _gpu.first_gpu() is None


def test_there_is_no_gpu_where_there_is_no_driver(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert _gpu.first_gpu() is None
