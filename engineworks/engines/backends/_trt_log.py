"""The vendor's log: every line of the build goes to the caller, and its errors are kept as the reason of a failure."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from engineworks.host.gpu import first_gpu

WITHOUT_GPU = re.compile(r"catchCudaError|cudaError 35\b")
"""What TensorRT-RTX adds to every real error on a host without a GPU: CUDA was asked and did not answer."""

NO_REASON = re.compile(r"Unexpected exception bad optional access|^ModelImporter\.cpp:\d+: (While parsing|---)")
"""Errors that only say that there was one."""


OUT_OF_MEMORY = re.compile(r"out of memory|OutOfMemory|cudaErrorMemoryAllocation|insufficient memory", re.IGNORECASE)
"""How the vendor says that there was no memory, on the GPU or elsewhere."""


def telling(text: str) -> str:
    """The words of an error without where in the vendor's source it was raised.

    'IBuilder::buildSerializedNetwork: Error Code 1: Myelin ([pass.cpp:337: check] Cannot compile … In compileGraph at
    /_src/…)' → 'Cannot compile …'.
    """
    lines = [line for line in text.splitlines() if line.strip() and not WITHOUT_GPU.search(line)] or text.splitlines()
    line = " ".join(line.strip() for line in lines)
    line = re.sub(r"^.*?Error Code \d+: (?:[\w ]+ \()?", "", line)
    line = re.sub(r"\[[\w./]+:\d+: \w+\]\s*", "", line)
    line = re.sub(r"\s*\(?In \w+ at /\S+.*$", "", line)
    return line.strip(" .()") or text.strip()


class Errors:
    """What the vendor said was wrong, in its order."""

    def __init__(self) -> None:
        self._errors: list[str] = []

    def reason(self) -> str:
        """The most telling of the errors, in one line: the first that says something."""
        good = [e for e in self._errors if not WITHOUT_GPU.search(e) and not NO_REASON.search(e)]
        return telling((good or self._errors or ["it gave no reason"])[0])

    def out_of_memory(self) -> bool:
        """Whether one of the errors is that there was no memory."""
        return any(OUT_OF_MEMORY.search(error) for error in self._errors)

    def text(self) -> str:
        """All errors, as they came."""
        return "\n".join(self._errors)


class RunErrors(Errors):
    """Errors of one runtime, its engines and contexts, by the vendor's error recorder.

    Beside it the vendor gets its own native logger: a logger in Python is called for every verbose line, and a run of
    small kernels has many of those: it made the launch of a run by a third slower.
    """

    def __init__(self, trt: Any) -> None:
        super().__init__()
        outer = self

        class Recorder(trt.IErrorRecorder):  # type: ignore[misc]
            def __init__(self) -> None:
                trt.IErrorRecorder.__init__(self)

            def clear(self) -> None:
                outer.clear()

            def report_error(self, code: Any, text: str) -> bool:
                del code
                outer._errors.append(text)
                return True

            def num_errors(self) -> int:
                return len(outer._errors)

            def get_error_code(self, index: int) -> Any:
                return trt.ErrorCodeTRT.UNSPECIFIED_ERROR

            def get_error_desc(self, index: int) -> str:
                return outer._errors[index]

            def has_overflowed(self) -> bool:
                return False

        self.logger, self.recorder = native_logger(trt), Recorder()

    def clear(self) -> None:
        """Forget the errors of what was done before."""
        self._errors.clear()


@cache
def native_logger(trt: Any) -> Any:
    """The vendor's own logger, one for the whole process; it prints errors."""
    return trt.Logger(trt.Logger.ERROR)


class Logger(Errors):
    """Stands behind the vendor's logger of builds. One for the whole process: the vendor keeps the first that it is
    given, so that builds and runs are done in different processes."""

    def __init__(self, trt: Any) -> None:
        super().__init__()
        outer = self

        class VendorLogger(trt.ILogger):  # type: ignore[misc]
            def __init__(self) -> None:
                trt.ILogger.__init__(self)

            def log(self, severity: Any, text: str) -> None:
                outer._take(severity.name, text)

        self._send: Callable[[str], None] | None = None
        self._filter_gpu = False
        self.vendor = VendorLogger()

    @contextmanager
    def sending(self, log: Callable[[str], None]) -> Iterator[Logger]:
        """Send what is logged to `log` meanwhile; errors of builds before are forgotten."""
        self._send, self._errors, self._filter_gpu = log, [], first_gpu() is None
        try:
            yield self
        finally:
            self._send = None

    def _take(self, severity: str, text: str) -> None:
        if severity == "VERBOSE" or self._send is None:  # thousands of lines for a small model
            return
        if severity in ("ERROR", "INTERNAL_ERROR"):
            self._errors.append(text)
            if self._filter_gpu and WITHOUT_GPU.search(text) and "Error Code 1: Cuda Runtime" in text:
                return
        self._send(f"{severity.lower()}: {text}")


_loggers: dict[str, Logger] = {}


def logger_of(trt: Any) -> Logger:
    """The logger of this vendor module in this process."""
    if trt.__name__ not in _loggers:
        _loggers[trt.__name__] = Logger(trt)
    return _loggers[trt.__name__]
