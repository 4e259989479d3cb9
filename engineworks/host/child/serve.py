"""The child's side of `engineworks.host.child`: reads jobs as JSON lines, does them, answers on a separate pipe.

The job and its C libraries own standard output and error, which the parent reads as the log. This module imports
nothing heavy; the job's module imports what it needs.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import importlib
import json
import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any, BinaryIO

from engineworks import errors
from engineworks.errors import EngineworksError, Place, Problem, RecipeError, StepError
from engineworks.host.child.supervise import supervise
from engineworks.host.memory import peak_mib, reset_peak, resident_mib


def serve(parent: int, answers_fd: int) -> None:
    """Do jobs until standard input ends. parent: the process id that must still be the parent's at the start."""
    supervise(parent)
    faulthandler.enable()
    os.set_inheritable(answers_fd, False)
    with take_over_stdin() as jobs, os.fdopen(answers_fd, "wb") as answers:
        print_line_by_line()
        for line in jobs:
            message = json.loads(line)
            if "imports" in message:
                sys.path[:] = message["sys_path"]
                import_early(message["imports"])
                continue
            answer = _answer(message)
            flush_output()
            answers.write(json.dumps(answer).encode() + b"\n")
            answers.flush()


def take_over_stdin() -> BinaryIO:
    """Move the jobs' pipe to a descriptor unknown to jobs; a job that reads standard input finds it empty."""
    jobs = os.fdopen(os.dup(0), "rb")
    empty = os.open(os.devnull, os.O_RDONLY)
    os.dup2(empty, 0)
    os.close(empty)
    return jobs


def print_line_by_line() -> None:
    """Buffer Python's and C's output by line: a crash loses no complete line, and the log is live."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True, errors="backslashreplace")  # type: ignore[union-attr]
    with contextlib.suppress(AttributeError, ValueError):  # a C library without `stdout` as a symbol
        libc = ctypes.CDLL(None)
        libc.setvbuf(ctypes.c_void_p.in_dll(libc, "stdout"), None, 1, 0)  # 1: _IOLBF


def flush_output() -> None:
    """Write what Python and C hold back."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # closed by the job
            stream.flush()
    ctypes.CDLL(None).fflush(None)


def import_early(modules: Sequence[str]) -> None:
    """Import modules before a job needs them."""
    for name in modules:
        with contextlib.suppress(ImportError):  # the job that needs it reports it
            importlib.import_module(name)


def _answer(message: Mapping[str, Any]) -> dict[str, Any]:
    try:
        sys.path[:] = message["sys_path"]
        os.chdir(message["cwd"])
        value = find(message["function"])(message["payload"])
        json.dumps(value)
        answer: dict[str, Any] = {"value": value}
    except EngineworksError as error:
        answer = {"error": encode_error(error)}
    except MemoryError as error:
        text = f"{message['what']} ran out of memory after {peak_mib():.0f} MiB ({error or 'MemoryError'})"
        answer = {"error": encode_error(StepError(text, log=traceback.format_exc()))}
    except BaseException as error:  # noqa: BLE001  the outermost boundary: the parent gets it, SystemExit too
        answer = {"defect": {"type": type(error).__name__, "message": str(error), "traceback": traceback.format_exc()}}
    answer |= {"memory_mib_peak": _mib(peak_mib), "memory_mib": _mib(resident_mib)}
    with contextlib.suppress(OSError):  # without kernel support the peak covers all jobs so far
        reset_peak()  # before the next job: the parent may read at any time
    return answer


def find(function: str) -> Callable[..., Any]:
    """Import `module:function`."""
    module, _, name = function.partition(":")
    found: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return found


def _mib(read: Callable[[], float]) -> float:
    try:
        return round(read(), 1)
    except OSError:  # no /proc on this system
        return 0.0


def encode_error(error: EngineworksError) -> dict[str, Any]:
    """Convert an `EngineworksError` to JSON; a class not in `errors` becomes its nearest base class there."""
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
    """Read what `encode_error` wrote."""
    kind: type[EngineworksError] = getattr(errors, encoded["class"])
    if issubclass(kind, RecipeError):
        return kind(
            [Problem(Place(p["file"], p["line"], p["column"]), p["message"], p["hint"]) for p in encoded["problems"]]
        )
    if issubclass(kind, StepError):
        return kind(encoded["message"], hint=encoded["hint"], log=encoded["log"])
    return kind(encoded["message"], hint=encoded["hint"])
