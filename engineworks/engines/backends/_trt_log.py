"""The vendor's log: forwards every line of the build and keeps errors as the reason of a failure."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from engineworks.host.gpu import first_gpu

WITHOUT_GPU = re.compile(r"catchCudaError|cudaError 35\b")
"""TensorRT-RTX adds this to every real error on a host without a GPU: CUDA did not answer."""

NO_REASON = re.compile(r"Unexpected exception bad optional access|^ModelImporter\.cpp:\d+: (While parsing|---)")
"""Errors that give no reason."""


OUT_OF_MEMORY = re.compile(r"out of memory|OutOfMemory|cudaErrorMemoryAllocation|insufficient memory", re.IGNORECASE)
"""How the vendor reports missing memory, on the GPU or elsewhere."""


def telling(text: str) -> str:
    """Return an error's text without the vendor's source location.

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
    """The vendor's errors, in order."""

    def __init__(self) -> None:
        self._errors: list[str] = []

    def reason(self) -> str:
        """Return the first error that gives a reason, in one line."""
        good = [e for e in self._errors if not WITHOUT_GPU.search(e) and not NO_REASON.search(e)]
        return telling((good or self._errors or ["it gave no reason"])[0])

    def out_of_memory(self) -> bool:
        """Whether one of the errors reports missing memory."""
        return any(OUT_OF_MEMORY.search(error) for error in self._errors)

    def text(self) -> str:
        """Return all errors unchanged."""
        return "\n".join(self._errors)


class RunErrors(Errors):
    """Errors of one runtime, its engines and contexts, from the vendor's error recorder.

    The vendor also gets its own native logger. A Python logger would be called for every verbose line, which made
    launches of many small kernels a third slower.
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
        """Forget earlier errors."""
        self._errors.clear()


@cache
def native_logger(trt: Any) -> Any:
    """Return the vendor's own logger, one per process; it prints errors."""
    return trt.Logger(trt.Logger.ERROR)


class Logger(Errors):
    """Backs the vendor's logger of builds. The vendor keeps the first logger of a process, so builds and runs use
    different processes."""

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
        """Send log lines to `log` within the block; forgets errors of earlier builds."""
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
    """Return the logger of this vendor module in this process."""
    if trt.__name__ not in _loggers:
        _loggers[trt.__name__] = Logger(trt)
    return _loggers[trt.__name__]
