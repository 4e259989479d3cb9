"""A build that runs out of memory is tried once more with less workspace, and then says so."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest

from engineworks.engines.backends import _trt, tensorrt_rtx
from engineworks.engines.backends._trt_config import shrink_workspace
from engineworks.engines.backends._trt_log import logger_of
from engineworks.engines.backends.base import BuildRequest
from engineworks.errors import BuildError

Operators = Callable[[str, str], onnx.ModelProto]
RequestFor = Callable[..., BuildRequest]

WORDINGS = (
    "[virtualMemoryBuffer.cpp::resizePhysical::154] Error Code 2: OutOfMemory (Requested size was 9663676416 bytes.)",
    "[defaultAllocator.cpp::allocate::31] Error Code 1: Cuda Runtime (out of memory)",
    "Error Code 10: Internal Error (Could not find any implementation for node conv due to insufficient workspace. "
    "insufficient memory on requested size of 123)",
)
"""What TensorRT's and TensorRT-RTX's builders say when there is no memory."""


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[int]]:
    """Makes the vendor fail the first builds with the given errors; returns the workspaces (MiB) it was given."""
    trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed: pip install tensorrt-rtx")
    write, given = _trt._write, list[int]()

    def fail(*errors: str) -> list[int]:
        left = list(errors)

        def stand_in(trt_: Any, builder: Any, network: Any, config: Any, path: Path) -> bool:
            given.append(config.get_memory_pool_limit(trt.MemoryPoolType.WORKSPACE) >> 20)
            if not left:
                return write(trt_, builder, network, config, path)
            path.write_bytes(b"")
            logger_of(trt).vendor.log(SimpleNamespace(name="ERROR"), left.pop(0))
            return False

        monkeypatch.setattr(_trt, "_write", stand_in)
        return given

    return fail


@pytest.mark.parametrize("wording", WORDINGS)
def test_out_of_memory_is_tried_again_with_less_workspace(
    failing: Callable[..., list[int]], request_for: RequestFor, operators: Operators, wording: str
) -> None:
    given, lines = failing(wording), list[str]()
    request = request_for(operators("gemm", "fp16"), "fp16", ("8.6",), options={"workspace_mib": 1024})
    report = tensorrt_rtx.build(request, lines.append)
    assert given == [1024, 256]
    assert report.details["workspace_mib_after_out_of_memory"] == 256
    assert "out of memory: once more with a workspace of 256 MiB" in lines
    assert [f.name for f in request.out.iterdir()] == ["engine"]


def test_out_of_memory_twice_is_one_clear_error(
    failing: Callable[..., list[int]], request_for: RequestFor, operators: Operators
) -> None:
    given = failing(WORDINGS[0], WORDINGS[0], WORDINGS[0])
    request = request_for(operators("gemm", "fp16"), "fp16", ("8.6",), options={"workspace_mib": 1024})
    with pytest.raises(BuildError) as caught:
        tensorrt_rtx.build(request, lambda line: None)
    assert given == [1024, 256]
    assert "ran out of memory while building for 8.6, in the usual workspace and in one of 256 MiB: " in str(
        caught.value
    )
    assert "Requested size was 9663676416 bytes" in caught.value.message
    assert "workspace_mib" in caught.value.hint
    assert list(request.out.iterdir()) == []


def test_with_little_workspace_to_take_from_there_is_no_second_try(
    failing: Callable[..., list[int]], request_for: RequestFor, operators: Operators
) -> None:
    given = failing(WORDINGS[1], WORDINGS[1])
    request = request_for(operators("gemm", "fp16"), "fp16", ("8.6",), options={"workspace_mib": 32})
    with pytest.raises(BuildError, match=r"ran out of memory while building for 8\.6: "):
        tensorrt_rtx.build(request, lambda line: None)
    assert given == [32]


def test_another_failure_is_not_tried_again(
    failing: Callable[..., list[int]], request_for: RequestFor, operators: Operators
) -> None:
    given = failing("Error Code 4: API Usage Error (something else)")
    with pytest.raises(BuildError, match=r"built no engine for 8\.6: something else"):
        tensorrt_rtx.build(request_for(operators("gemm", "fp16"), "fp16", ("8.6",)), lambda line: None)
    assert len(given) == 1


@pytest.mark.parametrize(
    ("limit_mib", "free_mib", "less_mib"),
    [(4096, None, 1024), (4096, 600.0, 300), (4096, 20.0, None), (32, None, None)],
)
def test_the_smaller_workspace_fits_into_what_is_free(
    limit_mib: int, free_mib: float | None, less_mib: int | None
) -> None:
    limits = [limit_mib << 20]
    config = SimpleNamespace(
        get_memory_pool_limit=lambda pool: limits[-1], set_memory_pool_limit=lambda pool, size: limits.append(size)
    )
    trt = SimpleNamespace(MemoryPoolType=SimpleNamespace(WORKSPACE=0))
    assert shrink_workspace(trt, config, free_mib) == less_mib
    assert limits[-1] >> 20 == (less_mib or limit_mib)


def test_a_reason_that_only_names_the_vendors_source_gives_way_to_what_is_known(
    failing: Callable[..., list[int]], request_for: RequestFor, operators: Operators, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As TensorRT-RTX 1.6 fails at an int8 convolution."""
    check = "Error Code 1: Myelin (MyelinCheckException: cudnn_impl.cpp:89: CHECK(dtype == myelinTypeFloat) failed)"
    failing(check)
    monkeypatch.setattr(_trt, "why_not", lambda *_, **__: "TensorRT-RTX 1.6 has no int8 convolution; use fp16")
    with pytest.raises(BuildError) as caught:
        tensorrt_rtx.build(request_for(operators("conv", "int8"), "int8", ("8.6",)), lambda line: None)
    assert caught.value.message.endswith("built no engine for 8.6: TensorRT-RTX 1.6 has no int8 convolution; use fp16")
    assert "MyelinCheckException" in caught.value.log
