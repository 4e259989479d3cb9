"""The sandbox's side: reads requests, calls the function, sends arrays and one object back. See `host.sandbox`.

Before, it takes from itself, and from all that it starts, the right to write files and to signal other processes, by
Landlock (landlock(7), Linux 5.13). That needs no privilege, holds for root too, and cannot be undone. Signals are
covered since Linux 6.12; another process's memory is closed to it as well (ptrace(2)). It restricts no reading of
files.
"""

from __future__ import annotations

import ctypes
import faulthandler
import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from engineworks.errors import EngineworksError, StepError
from engineworks.host.child.serve import encode_error, find, flush_output, print_line_by_line, take_over_stdin
from engineworks.host.child.supervise import supervise
from engineworks.host.sandbox import PROCESS, SETTING
from engineworks.host.sandbox.wire import Array, array_frame, end_frame, file_frame, read_message

MAX_TEXT = 1 << 16
"""Characters of each text of an error."""

Emit = Callable[[str, "Array | Path"], None]
"""Sends an array, or a file as one, under a name."""


def serve(parent: int, answers_fd: int) -> None:
    """Answer requests until standard input ends. parent: our process id, 0 in namespaces where it means nothing."""
    supervise(parent or os.getppid(), own_session=True)
    if os.environ.get(SETTING) != PROCESS:
        forbid_writes(except_below=(Path(tempfile.gettempdir()), Path("/dev"), Path("/proc/self")))
    faulthandler.enable()
    os.set_inheritable(answers_fd, False)
    with take_over_stdin() as requests, os.fdopen(answers_fd, "wb") as answers:

        def send(frames: Iterable[memoryview]) -> None:
            for frame in frames:
                answers.write(frame)

        def emit(name: str, value: Array | Path) -> None:
            send(file_frame(name, value) if isinstance(value, Path) else array_frame(name, value))

        print_line_by_line()
        while (request := read_message(requests)) is not None:
            end = _answer(request[1], request[0], emit)
            flush_output()
            send([end_frame(end)])
            answers.flush()


def _answer(request: dict[str, Any], arrays: dict[str, Array], emit: Emit) -> dict[str, Any]:
    try:
        sys.path[:] = request["sys_path"]
        return {"value": find(request["function"])(request["value"], arrays, emit)}
    except EngineworksError as error:
        return {"error": _printable(encode_error(error))}
    except BaseException as error:  # noqa: BLE001  the user's code may raise anything, also what ends an interpreter
        last = traceback.format_exception_only(error)[-1].strip()
        failure = StepError(f"{request['what']} failed: {last}", log=traceback.format_exc())
        return {"error": _printable(encode_error(failure))}


def _printable(encoded: dict[str, Any]) -> dict[str, str]:
    """Return the texts of an error without lone surrogates, long ones by their ends."""
    texts = {name: text for name, text in encoded.items() if isinstance(text, str)}
    return {name: text[-MAX_TEXT:].encode("utf-8", "backslashreplace").decode() for name, text in texts.items()}


_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_VERSION_FLAG, _PATH_BENEATH = 1, 1
_PR_SET_NO_NEW_PRIVS = 38

_WRITE_FILE = 1 << 1
_WRITES = sum(1 << bit for bit in (1, 4, 5, 6, 7, 8, 9, 10, 11, 12))
"""Write files; remove folders and files; make devices, folders, files, sockets, pipes and links."""

_LATER_WRITES = ((2, 1 << 13), (3, 1 << 14))
"""(version of Landlock, right): rename between folders, truncate."""

_SCOPED_SINCE = 6
_SCOPES = 0b11
"""Abstract Unix sockets, and signals."""


class _Ruleset(ctypes.Structure):
    _fields_ = (("fs", ctypes.c_uint64), ("net", ctypes.c_uint64), ("scoped", ctypes.c_uint64))


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("allowed", ctypes.c_uint64), ("parent", ctypes.c_int32))


def landlock_version() -> int:
    """Return the kernel's version of Landlock, 0 where it has none."""
    return max(0, _call(_CREATE_RULESET, None, 0, _VERSION_FLAG)) if sys.platform == "linux" else 0


def forbid_writes(*, except_below: Iterable[Path]) -> bool:
    """Forbid both for this thread and all that it starts; return whether the kernel can."""
    version = landlock_version()
    if not version:
        return False
    writes = _WRITES | sum(right for since, right in _LATER_WRITES if version >= since)
    ruleset = _Ruleset(writes, 0, _SCOPES if version >= _SCOPED_SINCE else 0)
    size = ctypes.sizeof(_Ruleset) if version >= _SCOPED_SINCE else 8
    rules = _call(_CREATE_RULESET, ctypes.byref(ruleset), size, 0)
    if rules < 0:
        return False
    try:
        for path in except_below:
            _allow(rules, path, writes)
        ctypes.CDLL(None).prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        return _call(_RESTRICT_SELF, rules, 0) == 0
    finally:
        os.close(rules)


def _allow(rules: int, path: Path, writes: int) -> None:
    try:
        folder = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        rule = _PathBeneath(writes if path.is_dir() else writes & (_WRITE_FILE | 1 << 14), folder)
        _call(_ADD_RULE, rules, _PATH_BENEATH, ctypes.byref(rule), 0)
    finally:
        os.close(folder)


def _call(number: int, *arguments: object) -> int:
    return int(ctypes.CDLL(None, use_errno=True).syscall(number, *arguments))
