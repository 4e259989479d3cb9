"""The sandbox's side: reads requests, calls the function, sends arrays and one object back. See `host.sandbox`."""

from __future__ import annotations

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
from engineworks.host.sandbox.command import PROCESS, SETTING
from engineworks.host.sandbox.landlock import forbid_writes
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
