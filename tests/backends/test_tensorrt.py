"""TensorRT 10 and 11: what differs from RTX, as far as it can be shown without their libraries."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from engineworks.backends import _gpu, tensorrt
from engineworks.backends._gpu import Gpu
from engineworks.backends._trt import network_flags

USED = {
    "Builder": ["create_network", "create_builder_config", "create_optimization_profile", "build_serialized_network"],
    "IBuilderConfig": [
        "add_optimization_profile", "set_memory_pool_limit", "set_flag", "clear_flag", "builder_optimization_level",
        "hardware_compatibility_level", "avg_timing_iterations", "max_aux_streams", "profiling_verbosity",
    ],
    "OnnxParser": ["parse_from_file", "num_errors", "get_error"],
    "ParserError": ["desc", "code", "node_name", "node_operator"],
    "INetworkDefinition": ["num_inputs", "get_input", "num_outputs", "get_output"],
    "ITensor": ["name", "shape", "dtype", "is_shape_tensor"],
    "IOptimizationProfile": ["set_shape"],
    "MemoryPoolType": ["WORKSPACE"],
    "BuilderFlag": ["TF32", "VERSION_COMPATIBLE", "SPARSE_WEIGHTS", "STRICT_NANS", "WEIGHT_STREAMING"],
    "HardwareCompatibilityLevel": ["AMPERE_PLUS"],
    "NetworkDefinitionCreationFlag": ["STRONGLY_TYPED"],
}  # fmt: skip
"""The vendor's names that `_trt` and its helpers use."""


@pytest.mark.parametrize("module", ["tensorrt", "tensorrt_rtx"])
def test_the_vendors_names_that_we_use_are_there(module: str) -> None:
    vendor = pytest.importorskip(module, reason=f"{module} is not installed")
    for owner, names in USED.items():
        for name in names:
            assert hasattr(getattr(vendor, owner), name), f"{owner}.{name}"


@pytest.mark.parametrize(
    ("version", "strongly_typed", "flags"),
    [("10.0.1", 1, 2), ("10.16.1.11", 1, 2), ("11.4.0.106", 0, 0), ("1.7.1.116", 0, 0)],
)
def test_networks_are_strongly_typed_in_every_version(version: str, strongly_typed: int, flags: int) -> None:
    """The values of the enumeration are those of the real bindings."""
    vendor = SimpleNamespace(
        __version__=version, NetworkDefinitionCreationFlag=SimpleNamespace(STRONGLY_TYPED=strongly_typed)
    )
    assert network_flags(vendor) == flags


def test_why_not_build_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt, "versions", dict)
    assert tensorrt.why_not_build(("8.6",)) == "TensorRT is not installed; pip install tensorrt"
    monkeypatch.setattr(tensorrt, "versions", lambda: {"tensorrt": "10.13.3.9"})
    monkeypatch.setattr(tensorrt, "first_gpu", lambda: None)
    assert "there is none here" in str(tensorrt.why_not_build(("8.6",)))
    assert "a target of its own" in str(tensorrt.why_not_build(("8.6", "8.9")))
    monkeypatch.setattr(tensorrt, "first_gpu", lambda: Gpu("NVIDIA H100", "9.0", "580.1", "13.0"))
    assert "the NVIDIA H100 here has compute capability 9.0, the target 8.6" in str(tensorrt.why_not_build(("8.6",)))
    assert tensorrt.why_not_build(("9.0",)) is None


def test_its_hardware_is_the_gpu_of_this_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt, "first_gpu", lambda: _gpu.Gpu("NVIDIA H100", "9.0", "580.1", "13.0"))
    assert tensorrt.hardware() == {
        "gpu": "NVIDIA H100", "compute_capability": "9.0", "driver": "580.1", "cuda": "13.0",
    }  # fmt: skip
