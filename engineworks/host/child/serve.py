"""The child's side of `engineworks.host.child`: reads jobs as JSON lines, does them, answers on a pipe of its own.

Standard output and error stay free for whatever the job and its C libraries print: the parent reads them as the log.
Imports nothing heavy: what a job needs, its own module imports.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import importlib
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

from engineworks import errors
from engineworks.errors import EngineworksError, Place, Problem, RecipeError, StepError
from engineworks.host.memory import peak_mib, reset_peak, resident_mib

Job = Callable[[Mapping[str, Any]], Mapping[str, Any]]

PR_SET_PDEATHSIG = 1
"""prctl(2): the signal that the kernel sends us when the thread that started us ends."""


def serve(parent: int, answers_fd: int) -> None:
    """Do jobs until standard input ends. `parent`: process id that must still be ours when we begin."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group: our parent decides what it means
    _die_with(parent)
    faulthandler.enable()
    os.set_inheritable(answers_fd, False)
    with _take_over_stdin() as jobs, os.fdopen(answers_fd, "wb") as answers:
        _print_line_by_line()
        for line in jobs:
            message = json.loads(line)
            if "imports" in message:
                _import_early(message)
                continue
            answer = _answer(message)
            _flush_output()
            answers.write(json.dumps(answer).encode() + b"\n")
            answers.flush()


def _die_with(parent: int) -> None:
    """No child outlives its parent, not even one that is killed with SIGKILL."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it ended before the kernel knew of our wish
        os._exit(1)


def _take_over_stdin() -> BinaryIO:
    """The jobs' pipe on a descriptor that no job knows; a job that reads standard input finds it empty."""
    jobs = os.fdopen(os.dup(0), "rb")
    empty = os.open(os.devnull, os.O_RDONLY)
    os.dup2(empty, 0)
    os.close(empty)
    return jobs


def _print_line_by_line() -> None:
    """Python's and C's buffers by line: a crash loses no line that was complete, and the log is live."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True, errors="backslashreplace")  # type: ignore[union-attr]
    with contextlib.suppress(AttributeError, ValueError):  # a C library without `stdout` as a symbol
        libc = ctypes.CDLL(None)
        libc.setvbuf(ctypes.c_void_p.in_dll(libc, "stdout"), None, 1, 0)  # 1: _IOLBF


def _flush_output() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # closed by the job
            stream.flush()
    ctypes.CDLL(None).fflush(None)


def _import_early(message: Mapping[str, Any]) -> None:
    sys.path[:] = message["sys_path"]
    for name in message["imports"]:
        with contextlib.suppress(ImportError):  # the job that needs it will say so
            importlib.import_module(name)


def _answer(message: Mapping[str, Any]) -> dict[str, Any]:
    try:
        sys.path[:] = message["sys_path"]
        os.chdir(message["cwd"])
        value = _find(message["function"])(message["payload"])
        json.dumps(value)
        answer: dict[str, Any] = {"value": value}
    except EngineworksError as error:
        answer = {"error": encode_error(error)}
    except MemoryError as error:
        text = f"{message['what']} ran out of memory after {peak_mib():.0f} MiB ({error or 'MemoryError'})"
        answer = {"error": encode_error(StepError(text, log=traceback.format_exc()))}
    except BaseException as error:  # noqa: BLE001  the outermost boundary: the parent is informed, of SystemExit too
        answer = {"defect": {"type": type(error).__name__, "message": str(error), "traceback": traceback.format_exc()}}
    answer |= {"memory_mib_peak": _mib(peak_mib), "memory_mib": _mib(resident_mib)}
    with contextlib.suppress(OSError):  # a kernel that cannot: the peak is then that of all jobs so far
        reset_peak()  # now, for the next job: our parent may look at any time
    return answer


def _find(function: str) -> Job:
    module, _, name = function.partition(":")
    job: Job = getattr(importlib.import_module(module), name)
    return job


def _mib(read: Callable[[], float]) -> float:
    try:
        return round(read(), 1)
    except OSError:  # no /proc on this system
        return 0.0


def encode_error(error: EngineworksError) -> dict[str, Any]:
    """An `EngineworksError` as JSON; a class that `errors` does not know goes as the nearest one that it does."""
    known = next(c for c in type(error).__mro__ if getattr(errors, c.__name__, None) is c)
    encoded: dict[str, Any] = {"class": known.__name__, "message": error.message, "hint": error.hint}
    if isinstance(error, StepError):
        encoded["log"] = error.log
    if isinstance(error, RecipeError):
        encoded["problems"] = [
            {"file": p.place.file, "line": p.place.line, "column": p.place.column, "message": p.message, "hint": p.hint}
            for p in error.problems
        ]
    return encoded


def decode_error(encoded: Mapping[str, Any]) -> EngineworksError:
    """The inverse of `encode_error`."""
    kind: type[EngineworksError] = getattr(errors, encoded["class"])
    if issubclass(kind, RecipeError):
        return kind(
            [Problem(Place(p["file"], p["line"], p["column"]), p["message"], p["hint"]) for p in encoded["problems"]]
        )
    if issubclass(kind, StepError):
        return kind(encoded["message"], hint=encoded["hint"], log=encoded["log"])
    return kind(encoded["message"], hint=encoded["hint"])
