"""Waits for a child: sends its job, forwards its lines as they come, and returns its answer."""

from __future__ import annotations

import json
import os
import re
import selectors
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

from engineworks.host.child.start import Child

POLL_S = 0.25
"""Interval of checks for a cancellation, a time limit, or the child's end."""

LOG_LINES = 50
"""Lines kept for an error's `log`."""

MAX_LINE_BYTES = 1 << 16
"""A longer line is split, so that a progress bar cannot fill our memory."""

PIPE_BYTES = 1 << 20
"""Bytes that a pipe holds at most (pipe(7), pipe-max-size)."""

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


class Lines:
    """Splits the bytes of a job's output into lines without colors; forwards them and keeps the last ones."""

    def __init__(self, on_line: Callable[[str], object] | None) -> None:
        self._on_line = on_line
        self._rest = b""
        self._last: deque[str] = deque(maxlen=LOG_LINES)

    def feed(self, data: bytes) -> None:
        *complete, self._rest = (self._rest + data).split(b"\n")
        for line in complete:
            self._say(line)
        if len(self._rest) > MAX_LINE_BYTES:
            self.flush()

    def flush(self) -> None:
        """Forward an incomplete last line."""
        if self._rest:
            rest, self._rest = self._rest, b""
            self._say(rest)

    def text(self) -> str:
        """Return the last lines."""
        return "\n".join(self._last)

    def last_before_crash(self) -> str:
        """Return the last line before the output of Python's fault handler in a crash."""
        lines = list(self._last)
        fault = next((i for i, line in enumerate(lines) if line.startswith("Fatal Python error:")), len(lines))
        return next((line for line in reversed(lines[:fault]) if line.strip()), "")

    def _say(self, line: bytes) -> None:
        shown = line.rstrip(b"\r").rpartition(b"\r")[2]  # a progress bar's last state
        text = _COLOUR.sub("", shown.decode("utf-8", "replace"))
        self._last.append(text)
        if self._on_line is not None:
            self._on_line(text)


class TimeUp(Exception):
    """The time limit has passed; the child still runs."""


class Stopped(Exception):
    """The wait was canceled; the child still runs, or was killed for it."""


class Answer(Protocol):
    """Collects what a child answers."""

    complete: bool

    def feed(self, data: bytes) -> None: ...


class LineAnswer:
    """One line of JSON, from code of ours."""

    def __init__(self) -> None:
        self._line = bytearray()
        self.complete = False

    def feed(self, data: bytes) -> None:
        self._line += data
        self.complete = self._line.endswith(b"\n")

    def value(self) -> dict[str, Any] | None:
        """Return the object, None where the child ended without one."""
        value: dict[str, Any] | None = json.loads(self._line) if self.complete else None
        return value


def wait_for_answer(
    child: Child, message: Iterable[memoryview], answer: Answer, lines: Lines, *,
    time_limit_s: float | None, stop: Callable[[], bool],
) -> None:  # fmt: skip
    """Send the message and feed `answer` until it is complete or the child has ended.

    Raises `TimeUp` after `time_limit_s` seconds and `Stopped` once `stop()` is true. Discards late output of an earlier
    job first.
    """
    if child.jobs:
        _drain(child.output_fd)
    child.peak_mib = 0.0
    parts = iter(message)
    unsent = next(parts, None)
    start = looked = time.monotonic()
    with selectors.DefaultSelector() as selector:
        selector.register(child.output_fd, selectors.EVENT_READ, lines.feed)
        selector.register(child.answers_fd, selectors.EVENT_READ, answer.feed)
        selector.register(child.jobs_fd, selectors.EVENT_WRITE)
        while True:
            ended = not child.alive()  # asked before reading, so that the pipes hold all its output
            for key, _ in selector.select(0 if ended else POLL_S):
                if key.fd == child.jobs_fd:
                    unsent = _send(child.jobs_fd, unsent, parts)
                    if unsent is None:
                        selector.unregister(child.jobs_fd)
                elif data := _read(key.fd):
                    key.data(data)
                else:
                    selector.unregister(key.fd)
            if ended or answer.complete:
                break
            if stop():
                raise Stopped
            if time_limit_s is not None and time.monotonic() - start >= time_limit_s:
                raise TimeUp
            if time.monotonic() - looked >= POLL_S:
                looked = time.monotonic()
                child.look_at_memory()
    answer.feed(_drain(child.answers_fd))
    lines.feed(_drain(child.output_fd))
    lines.flush()
    if stop():
        raise Stopped


def _send(fd: int, data: memoryview | None, parts: Iterator[memoryview]) -> memoryview | None:
    """Write what the pipe takes; return the rest of the message's present part, None at its end."""
    try:
        data = data[os.write(fd, data) :] if data else data
    except BlockingIOError:
        return data
    except BrokenPipeError:  # the child is gone; the caller notices
        return None
    return data or next(parts, None)


def _read(fd: int) -> bytes:
    """Return the available bytes, b"" at the end."""
    try:
        return os.read(fd, 1 << 16)
    except BlockingIOError:
        return b""


def _drain(fd: int) -> bytes:
    """Return what the pipe holds; a child that keeps writing does not keep us."""
    data = b""
    while len(data) < PIPE_BYTES and (more := _read(fd)):
        data += more
    return data
