"""The header of TensorRT-RTX plans, on real ones."""

from __future__ import annotations

from collections.abc import Callable

import onnx
import pytest

from engineworks.engines.backends import tensorrt_rtx
from engineworks.engines.backends._trt import check_header
from engineworks.engines.backends.base import BuildRequest
from engineworks.engines.backends.plan_header import HEADER_BYTES, PlanHeader, read_plan_header
from engineworks.errors import BuildError, RunError

pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed: pip install tensorrt-rtx")

INSTALLED = tensorrt_rtx.versions()["tensorrt-rtx"]
BLACKWELL = ("12.0",) if INSTALLED.startswith("1.4.") else ("12.0", "12.1")

OLD = {
    ("1.4.0.76", "8.6 8.9"): "76747274000000000200000000000000ace50700000000000104004c767472740c000000",
    ("1.4.0.76", "portable"): "76747274000000000200000000000000a4e50700000000000104004c767472743e000000",
    ("1.5.0.114", "7.5"): "7674727400000000020000000000000044010a0000000000010500727674727401000000",
    ("1.6.1.120", "portable"): "76747274000000000200000000000000840a0a000000000001060178767472747e000000",
}
"""The first 36 bytes of plans of older versions, built here of the same model."""


@pytest.mark.parametrize(
    "capabilities",
    [("7.5",), ("8.0",), ("8.6",), ("8.9",), BLACKWELL[-1:], BLACKWELL, ("12.0", "8.0"), ("8.0", "8.6", "8.9", "12.0")],
)
def test_the_header_tells_what_an_engine_is_for(
    request_for: Callable[..., BuildRequest],
    operators: Callable[[str, str], onnx.ModelProto],
    capabilities: tuple[str, ...],
) -> None:
    request = request_for(operators("conv", "fp16"), "fp16", capabilities)
    report = tensorrt_rtx.build(request, lambda line: None)
    data = (request.out / report.file).read_bytes()
    header = read_plan_header(data[:HEADER_BYTES])
    assert set(header.compute_capabilities) == set(capabilities)
    assert header.version == INSTALLED
    assert header.plan_bytes == len(data)
    assert not header.later
    assert report.details["header"] == header.to_json()


def test_a_portable_engine_is_for_later_gpus_too(
    request_for: Callable[..., BuildRequest], operators: Callable[[str, str], onnx.ModelProto]
) -> None:
    request = request_for(operators("conv", "fp16"), "fp16", ("9.0",))
    report = tensorrt_rtx.build(request, lambda line: None)
    header = read_plan_header((request.out / report.file).read_bytes())
    assert header.later
    assert header.compute_capabilities == ("8.0", "8.6", "8.9", *BLACKWELL)


@pytest.mark.parametrize(("version", "kind"), OLD)
def test_headers_of_older_versions_are_read(version: str, kind: str) -> None:
    header = read_plan_header(bytes.fromhex(OLD[version, kind]).ljust(HEADER_BYTES, b"\0"))
    portable = ("8.0", "8.6", "8.9", "12.0") + (("12.1",) if version >= "1.5" else ())
    assert header.version == version
    assert header.compute_capabilities == (portable if kind == "portable" else tuple(kind.split()))
    assert header.later == (kind == "portable")


@pytest.mark.parametrize("data", [b"", b"vtrt" + bytes(20), bytes(64), b"ftrt" + bytes(60), b"vtrt" + bytes(60)])
def test_what_is_no_plan_is_refused(data: bytes) -> None:
    with pytest.raises(RunError, match="not a TensorRT-RTX engine"):
        read_plan_header(data)


def test_an_engine_that_is_cut_short_or_for_other_gpus_is_not_let_pass() -> None:
    header = PlanHeader("vtrt", 1000, "1.7.1.116", ("8.6", "8.9"), later=False)
    check_header("RTX", ("8.9",), header, 1000)
    with pytest.raises(BuildError, match="RTX wrote 900 bytes of an engine of 1000; is a disk full"):
        check_header("RTX", ("8.9",), header, 900)
    with pytest.raises(BuildError, match=r"RTX built for 8\.6, 8\.9, asked for was 12\.0"):
        check_header("RTX", ("12.0",), header, 1000)
    with pytest.raises(BuildError, match=r"asked for was 9\.0"):
        check_header("RTX", ("9.0",), header, 1000)
