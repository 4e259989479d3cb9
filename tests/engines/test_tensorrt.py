"""TensorRT 10 and 11: what differs from RTX, as far as it can be shown without their libraries."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from engineworks.engines.backends import _trt, tensorrt
from engineworks.engines.backends._trt_config import configure
from engineworks.engines.backends._trt_parse import network_flags
from engineworks.errors import TargetError
from engineworks.host import gpu
from engineworks.host.gpu import Gpu

USED = {
    "Builder": ["create_network", "create_builder_config", "create_optimization_profile", "build_serialized_network"],
    "IBuilderConfig": [
        "add_optimization_profile", "set_memory_pool_limit", "set_flag", "clear_flag", "builder_optimization_level",
        "hardware_compatibility_level", "avg_timing_iterations", "max_aux_streams", "profiling_verbosity",
        "create_timing_cache", "set_timing_cache",
    ],
    "ITimingCache": ["serialize"],
    "OnnxParser": ["parse_from_file", "parse", "num_errors", "get_error"],
    "ParserError": ["desc", "code", "node_name", "node_operator"],
    "INetworkDefinition": ["num_inputs", "get_input", "num_outputs", "get_output", "num_layers", "get_layer"],
    "ITensor": ["name", "shape", "dtype", "is_shape_tensor"],
    "IOptimizationProfile": ["set_shape"],
    "MemoryPoolType": ["WORKSPACE"],
    "BuilderFlag": ["TF32", "VERSION_COMPATIBLE", "SPARSE_WEIGHTS", "WEIGHT_STREAMING"],
    "HardwareCompatibilityLevel": ["AMPERE_PLUS"],
    "NetworkDefinitionCreationFlag": ["STRONGLY_TYPED"],
    "ILogger": ["__init__"],
    "Logger": ["ERROR"],
    "IErrorRecorder": ["clear", "report_error", "num_errors", "get_error_code", "get_error_desc", "has_overflowed"],
    "ErrorCodeTRT": ["UNSPECIFIED_ERROR"],
    "Runtime": ["deserialize_cuda_engine", "error_recorder"],
    "ICudaEngine": [
        "num_io_tensors", "get_tensor_name", "get_tensor_shape", "get_tensor_dtype", "get_tensor_mode",
        "get_tensor_location", "get_tensor_profile_shape", "num_optimization_profiles", "create_execution_context",
    ],
    "IExecutionContext": [
        "set_optimization_profile_async", "set_input_shape", "set_tensor_address", "infer_shapes", "get_tensor_shape",
        "set_output_allocator", "execute_async_v3",
    ],
    "IOutputAllocator": ["__init__"],
    "TensorIOMode": ["INPUT"],
    "TensorLocation": ["HOST"],
    "DataType": ["FLOAT", "HALF", "BF16", "FP8", "INT64", "INT32", "INT8", "INT4", "UINT8", "BOOL"],
}  # fmt: skip
"""The vendor's names that `_trt` and its helpers use."""

CALLS = {
    ("ICudaEngine", "get_tensor_profile_shape"): "name profile_index",
    ("IExecutionContext", "set_optimization_profile_async"): "profile_index stream_handle",
    ("IExecutionContext", "set_input_shape"): "name shape",
    ("IExecutionContext", "set_tensor_address"): "name memory",
    ("IExecutionContext", "set_output_allocator"): "name output_allocator",
    ("IExecutionContext", "execute_async_v3"): "stream_handle",
    ("IBuilderConfig", "set_timing_cache"): "cache ignore_mismatch",
    ("IBuilderConfig", "create_timing_cache"): "serialized_timing_cache",
    ("IBuilderConfig", "set_memory_pool_limit"): "pool pool_size",
    ("IOptimizationProfile", "set_shape"): "input min opt max",
    ("Builder", "build_serialized_network"): "network config",
    ("OnnxParser", "parse"): "model path",
    ("INetworkDefinition", "get_layer"): "index",
}
"""The arguments that we give, all by position, by their names in the vendor's signatures."""

RECORD = json.loads((Path(__file__).parents[1] / "records" / "tensorrt_bindings.json").read_text(encoding="utf-8"))
"""What the published bindings of each version say of themselves (tests/records/read_tensorrt.py)."""


@pytest.mark.parametrize("version", RECORD)
def test_the_published_bindings_have_every_name_that_we_use(version: str) -> None:
    missing = [f"{o}.{n}" for o, names in USED.items() for n in names if n not in RECORD[version].get(o, {})]
    assert missing == []


@pytest.mark.parametrize("version", RECORD)
@pytest.mark.parametrize(("owner", "name"), CALLS)
def test_the_published_signatures_take_what_we_give(version: str, owner: str, name: str) -> None:
    given = CALLS[owner, name].split()
    taken = [re.findall(r"(?:^|, )(\w+): ", s.partition("(")[2]) for s in RECORD[version][owner][name]]
    assert ["self", *given] in [t[: len(given) + 1] for t in taken], taken


def test_an_option_that_a_version_lacks_is_refused() -> None:
    """10.0 has no STRICT_NANS, as its bindings say."""
    assert "STRICT_NANS" not in RECORD["10.0.1"]["BuilderFlag"]
    vendor = SimpleNamespace(BuilderFlag=SimpleNamespace(TF32=1))
    config = SimpleNamespace(clear_flag=lambda flag: None)
    with pytest.raises(TargetError, match=r"TensorRT 10\.0\.1 does not have option 'strict_nans'"):
        configure(vendor, "TensorRT 10.0.1", config, {"strict_nans": True})


def test_tensorrt_rtx_has_every_name_that_we_use() -> None:
    vendor = pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed")
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
    monkeypatch.setattr(_trt.Vendor, "versions", lambda vendor: {})
    assert tensorrt.why_not_build(("8.6",)) == "TensorRT is not installed; pip install tensorrt"
    monkeypatch.setattr(_trt.Vendor, "versions", lambda vendor: {"tensorrt": "10.13.3.9"})
    monkeypatch.setattr(gpu, "first_gpu", lambda: None)
    assert "there is none here" in str(tensorrt.why_not_build(("8.6",)))
    assert "a target of its own" in str(tensorrt.why_not_build(("8.6", "8.9")))
    monkeypatch.setattr(gpu, "first_gpu", lambda: Gpu("NVIDIA H100", "9.0", "580.1", "13.0"))
    assert "the NVIDIA H100 here has compute capability 9.0, the target 8.6" in str(tensorrt.why_not_build(("8.6",)))
    assert tensorrt.why_not_build(("9.0",)) is None


def test_its_hardware_is_the_gpu_of_this_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "first_gpu", lambda: gpu.Gpu("NVIDIA H100", "9.0", "580.1", "13.0"))
    assert tensorrt.hardware() == {
        "gpu": "NVIDIA H100", "compute_capability": "9.0", "driver": "580.1", "cuda": "13.0",
    }  # fmt: skip
