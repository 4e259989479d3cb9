"""The most telling line of what TensorRT-RTX says when it fails: real lines, from 1.4 to 1.7."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from engineworks.engines.backends import _trt_log
from engineworks.engines.backends._trt_log import Logger, telling

NO_GEMM = (
    "IBuilder::buildSerializedNetwork: Error Code 1: Myelin ([pass.cpp:337: check_turing_op_compatibility] Cannot "
    "compile operation 'node_linear' for Turing (SM75): FP32 GEMM is not supported. In compileGraph at "
    "/_src/optimizer/myelin/codeGenerator.cpp:2012)"
)
NO_CUDA = (
    "[checkMacros.cpp::catchCudaError::250] Error Code 1: Cuda Runtime (In catchCudaError at "
    "/_src/common/dispatch/checkMacros.cpp:250 (cudaError 35: CUDA driver version is insufficient for CUDA runtime "
    "version))"
)
NO_CUDA_OLD = (
    "[checkMacros.cpp::catchCudaError::229] Error Code 1: Cuda Runtime (In catchCudaError at "
    "/_src/common/dispatch/checkMacros.cpp:229)"
)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (NO_GEMM, "Cannot compile operation 'node_linear' for Turing (SM75): FP32 GEMM is not supported"),
        (
            "ITensor::getDimensions: Error Code 4: API Usage Error (mixed: ElementWiseOperation SUM must have same "
            "input types. But they are of types Half and Float. In validateTypes at /_src/x/elementWiseNode.cpp:40)\n"
            + NO_CUDA,
            "mixed: ElementWiseOperation SUM must have same input types. But they are of types Half and Float",
        ),
        ("something new", "something new"),
    ],
)
def test_an_error_is_told_without_where_in_the_source_it_was_raised(line: str, said: str) -> None:
    assert telling(line) == said


class FakeILogger:
    """Stands for the vendor's base class."""


def fake_logger() -> tuple[Logger, Any]:
    logger = Logger(SimpleNamespace(ILogger=FakeILogger))
    return logger, lambda severity, text: logger.vendor.log(SimpleNamespace(name=severity), text)


def test_errors_that_only_come_of_a_missing_gpu_are_no_reason_and_not_in_the_log(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_trt_log, "first_gpu", lambda: None)
    logger, echo = fake_logger()
    lines: list[str] = []
    with logger.sending(lines.append):
        for line in (NO_CUDA, NO_CUDA_OLD, NO_GEMM):
            echo("ERROR", line)
        echo("INFO", "hello")
        echo("VERBOSE", "thousands of these")
    assert lines == [f"error: {NO_GEMM}", "info: hello"]
    assert "FP32 GEMM" in logger.reason()


def test_with_a_gpu_an_error_of_cuda_is_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_trt_log, "first_gpu", lambda: object())
    logger, echo = fake_logger()
    lines: list[str] = []
    with logger.sending(lines.append):
        echo("ERROR", NO_CUDA)
    assert lines == [f"error: {NO_CUDA}"]


def test_a_missing_gpu_is_the_reason_where_there_is_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_trt_log, "first_gpu", lambda: None)
    logger, echo = fake_logger()
    with logger.sending(lambda line: None):
        echo("ERROR", NO_CUDA)
        assert "Cuda" in logger.reason()


def test_the_errors_of_a_build_before_are_forgotten() -> None:
    logger, echo = fake_logger()
    with logger.sending(lambda line: None):
        echo("ERROR", NO_GEMM)
    with logger.sending(lambda line: None):
        assert logger.reason() == "it gave no reason"
