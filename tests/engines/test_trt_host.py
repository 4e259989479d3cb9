"""One clear sentence for each reason why a host cannot run a target's engines, and why an engine does not fit it."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping

import pytest

from engineworks.engines.backends import _trt, _trt_host, tensorrt, tensorrt_rtx
from engineworks.engines.backends._trt_host import why_not_fit, why_not_run_here
from engineworks.engines.backends.plan_header import BITS
from engineworks.host.gpu import Gpu

H100 = Gpu("NVIDIA H100", "9.0", "580.65.06", "13.0", 81559)
RTX4090 = Gpu("NVIDIA GeForce RTX 4090", "8.9", "580.65.06", "13.0", 24564)
PORTABLE = ("8.0", "8.6", "8.9", "12.0")
RTX16 = {"tensorrt-rtx": "1.6.1.120", "tensorrt-rtx-cu13-libs": "1.6.1.120", "cuda-bindings": "13.0.1"}

Host = Callable[..., None]


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Host:
    """Makes a host of a GPU and installed distributions."""

    def make(gpu: Gpu | None, installed: Mapping[str, str]) -> None:
        monkeypatch.setattr(_trt_host, "first_gpu", lambda: gpu)
        monkeypatch.setattr(_trt_host, "installed_version", installed.get)
        monkeypatch.setattr(_trt, "installed_versions", lambda names: {name: installed.get(name) for name in names})

    return make


def echo(capabilities: tuple[str, ...], vendor: _trt.Vendor = tensorrt_rtx.VENDOR) -> str:
    return why_not_run_here(vendor, capabilities) or ""


def test_a_host_with_everything_runs_the_targets_of_its_gpu(host: Host) -> None:
    host(H100, RTX16)
    assert echo(("9.0",)) == ""
    host(RTX4090, RTX16)
    assert echo(("8.9",)) == echo(PORTABLE) == ""
    host(H100, {"tensorrt-cu13": "11.4.0", "tensorrt": "11.4.0", "cuda-bindings": "13.0.1"})
    assert echo(("9.0",), tensorrt.VENDOR) == ""


def test_a_vendor_that_is_not_installed(host: Host) -> None:
    host(H100, {"cuda-bindings": "13.0.1"})
    assert echo(("9.0",)) == "TensorRT-RTX is not installed; pip install tensorrt-rtx"


def test_a_host_without_a_gpu(host: Host) -> None:
    host(None, RTX16)
    assert echo(PORTABLE) == (
        "no NVIDIA GPU here; the target's engines run on compute capability 8.0, 8.6, 8.9 or 12.0"
    )


@pytest.mark.parametrize(("gpu", "target"), [(RTX4090, ("9.0",)), (RTX4090, ("8.6",)), (H100, PORTABLE)])
def test_a_gpu_that_the_target_does_not_name(host: Host, gpu: Gpu, target: tuple[str, ...]) -> None:
    """A portable engine for 8.0 and later may load on a GPU that its target does not name: it is not this target's."""
    host(gpu, RTX16)
    said = echo(target)
    assert said.startswith(f"the {gpu.name} here has compute capability {gpu.compute_capability}; the target's engines")
    assert said.endswith(target[-1])


@pytest.mark.parametrize(
    ("driver", "cuda"), [("550.54.15", "12.4"), ("550.54.15", ""), ("470.256.02", "")], ids=["says", "silent", "old"]
)
def test_a_driver_too_old_for_the_vendors_cuda(host: Host, driver: str, cuda: str) -> None:
    host(Gpu("NVIDIA H100", "9.0", driver, cuda), RTX16)
    assert echo(("9.0",)) == (
        f"TensorRT-RTX here needs CUDA 13, and the driver {driver} is too old for it: install driver 580 or newer"
    )


def test_a_driver_that_knows_no_capability_is_called_too_old_and_not_a_wrong_gpu(host: Host) -> None:
    host(Gpu("Tesla K80", "", "470.256.02", ""), RTX16)
    assert "install driver 580 or newer" in echo(("9.0",))


def test_an_older_cuda_needs_an_older_driver_only(host: Host) -> None:
    installed = {"tensorrt": "10.13.3", "tensorrt-cu12": "10.13.3", "cuda-bindings": "12.9.1"}
    host(Gpu("NVIDIA H100", "9.0", "550.54.15", "12.4"), installed)
    assert echo(("9.0",), tensorrt.VENDOR) == ""
    host(Gpu("NVIDIA H100", "9.0", "515.1", ""), installed)
    assert "needs CUDA 12, and the driver 515.1 is too old for it: install driver 525" in echo(
        ("9.0",), tensorrt.VENDOR
    )


def test_a_version_that_refuses_the_gpu(host: Host) -> None:
    host(H100, {**RTX16, "tensorrt-rtx": "1.7.1.116"})
    assert echo(("9.0",)) == (
        "TensorRT-RTX 1.7 does not run on Hopper GPUs (compute capability 9.0); use tensorrt-rtx 1.6, the last one "
        "that does"
    )


def test_bindings_that_are_not_installed(host: Host) -> None:
    host(H100, {n: v for n, v in RTX16.items() if n != "cuda-bindings"})
    assert echo(("9.0",)) == (
        "NVIDIA's cuda-python is not installed, by which engines are run; pip install 'cuda-bindings==13.*'"
    )


def test_bindings_too_new_for_the_driver(host: Host) -> None:
    installed = {"tensorrt": "10.13.3", "tensorrt-cu12": "10.13.3", "cuda-bindings": "13.0.1"}
    host(Gpu("NVIDIA H100", "9.0", "550.54.15", "12.4"), installed)
    assert echo(("9.0",), tensorrt.VENDOR) == (
        "cuda-bindings 13.0.1 needs CUDA 13, and the driver 550.54.15 is too old for it: install driver 580 or newer"
    )


def plan(capabilities: tuple[str, ...], *, later: bool = False, version: tuple[int, ...] = (1, 6, 1, 120)) -> bytes:
    """The first bytes of a plan as TensorRT-RTX 1.5 and later write them."""
    mask = sum(1 << BITS.index(c) for c in capabilities) | (later << len(BITS))
    start = struct.pack("<8sQQ4B4sI", b"vtrt", 2, 64, *version, b"vtrt", mask)
    return start + bytes(64 - len(start))


def fit(start: bytes, gpu: Gpu) -> str:
    return why_not_fit(tensorrt_rtx.VENDOR, start, {}, gpu) or ""


def test_an_engine_fits_the_gpus_that_its_header_names(host: Host) -> None:
    host(None, RTX16)
    assert fit(plan(("8.6", "8.9")), RTX4090) == ""
    assert fit(plan(PORTABLE, later=True), H100) == ""
    assert fit(plan(PORTABLE), H100) == (
        "this engine is for compute capability 8.0, 8.6, 8.9 or 12.0, the NVIDIA H100 here has 9.0: build it for a "
        "target of this GPU"
    )
    assert "the Tesla T4 here has 7.5" in fit(plan(PORTABLE, later=True), Gpu("Tesla T4", "7.5", "580.1", "13.0"))


def test_an_engine_of_another_version_does_not_fit(host: Host) -> None:
    host(None, RTX16)
    assert fit(plan(("8.9",), version=(1, 7, 1, 116)), RTX4090) == (
        "this engine was built by TensorRT-RTX 1.7.1.116, here is 1.6.1.120: build it again with this version"
    )


def test_what_is_no_engine_does_not_fit(host: Host) -> None:
    host(None, RTX16)
    assert "not a TensorRT-RTX engine" in fit(b"\x08\x0aONNX" * 16, RTX4090)
    assert "not a TensorRT-RTX engine" in fit(b"", RTX4090)


def test_tensorrt_engines_are_told_by_what_their_sidecar_says(host: Host) -> None:
    host(None, {"tensorrt": "11.4.0.106"})
    vendor = tensorrt.VENDOR
    assert why_not_fit(vendor, b"", {"tensorrt": "11.4.0.106"}, H100) is None
    assert why_not_fit(vendor, b"", {}, H100) is None
    assert why_not_fit(vendor, b"", {"tensorrt": "10.13.3.9"}, H100) == (
        "this engine was built by TensorRT 10.13.3.9, here is 11.4.0.106: build it again with this version"
    )
