"""Starts, feeds and kills one child process. See `engineworks.host.child`."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from engineworks.errors import StepError
from engineworks.host.child.serve import serve
from engineworks.host.child.supervise import children, go_on
from engineworks.host.memory import peak_mib

BOOTSTRAP = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from engineworks.host.child.serve import serve; serve(int(sys.argv[2]), int(sys.argv[3]))"
)

END_S = 5.0
"""Seconds for a killed child to disappear; after that it is left to the kernel."""


@dataclass(frozen=True)
class Command:
    """How to start a child. bootstrap: its Python program, called with our search path, our process id and the
    descriptor for its answers. prefix: a program that starts it in its own namespaces, where our id means nothing
    (then 0 is passed). fork: it is a fork of this process, which may be forked (`may_fork`), and has its modules."""

    env: Mapping[str, str]
    bootstrap: str = BOOTSTRAP
    prefix: tuple[str, ...] = ()
    cwd: Path | None = None
    fork: bool = False


def search_path() -> list[str]:
    """Return `sys.path`, with the current folder instead of the empty entry."""
    return [p or str(working_folder()) for p in sys.path]


def working_folder() -> Path:
    """Return the current folder. Raises `StepError` where it was deleted."""
    try:
        return Path.cwd()
    except FileNotFoundError:
        raise StepError("the current folder was deleted", hint="go to a folder that exists, and start again") from None


class Child:
    """One child process below its supervisor, and our ends of its non-blocking pipes.

    jobs: number of jobs done. peak_mib: maximum resident memory seen during its present job, MiB.
    """

    def __init__(self, command: Command) -> None:
        self.env = command.env
        self._worker = 0
        self.jobs = 0
        self.peak_mib = 0.0
        output, output_end = os.pipe()
        answers, answers_end = os.pipe()
        forked = partial(go_on, partial(serve, os.getpid(), answers_end), command.env, answers_end)
        try:
            self._popen = subprocess.Popen(
                [*command.prefix, sys.executable, "-c", command.bootstrap, json.dumps(search_path()),
                 str(0 if command.prefix else os.getpid()), str(answers_end)],
                stdin=subprocess.PIPE, stdout=output_end, stderr=output_end, pass_fds=(answers_end,),
                env=command.env, cwd=command.cwd, bufsize=0, preexec_fn=forked if command.fork else None,
            )  # fmt: skip
        except OSError:
            os.close(output)
            os.close(answers)
            raise
        finally:
            os.close(output_end)
            os.close(answers_end)
        assert self._popen.stdin is not None
        self.jobs_fd, self.output_fd, self.answers_fd = self._popen.stdin.fileno(), output, answers
        for fd in (self.jobs_fd, output, answers):
            os.set_blocking(fd, False)
        self._open = True

    def alive(self) -> bool:
        """Return whether its supervisor still runs: until then, it or something that it started may run."""
        return self._popen.poll() is None

    def listens(self) -> bool:
        """Return whether it can take a job: once it has ended, nothing reads its pipe (poll(2), POLLERR)."""
        poll = select.poll()
        poll.register(self.jobs_fd, 0)
        return self.alive() and not poll.poll(0)

    @property
    def exit_code(self) -> int:
        """Return its exit code, negative for a signal; valid only after its end."""
        return self._popen.returncode or 0

    def send_early(self, message: Mapping[str, Any]) -> None:
        """Send a small message to a new child: its pipe is empty, so this never blocks."""
        os.write(self.jobs_fd, json.dumps(message).encode() + b"\n")

    def look_at_memory(self) -> None:
        """Record the peak of its resident memory (Linux: proc(5), VmHWM)."""
        self._worker = self._worker or next(iter(children(self._popen.pid)), 0)
        with contextlib.suppress(OSError):
            self.peak_mib = max(self.peak_mib, peak_mib(self._worker))

    def kill(self) -> None:
        """Ask its supervisor to kill it and all that it started; the waiting caller notices."""
        self._popen.terminate()

    def end(self) -> None:
        """Kill it, wait for its end, and close our ends of its pipes."""
        self.kill()
        try:
            self._popen.wait(END_S)
        except subprocess.TimeoutExpired:  # its supervisor was stopped, or waits for the kernel
            for pid in (*descendants(self._popen.pid), self._popen.pid):
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._popen.wait(END_S)
        if self._open:
            self._open = False
            assert self._popen.stdin is not None
            self._popen.stdin.close()
            os.close(self.output_fd)
            os.close(self.answers_fd)


def descendants(pid: int) -> list[int]:
    """Return the ids of the process's descendants."""
    below = children(pid)
    return [*below, *(deeper for child in below for deeper in descendants(child))]


class _Starter:
    """The one thread that starts children: it lives as long as the process, so children can too."""

    def __init__(self) -> None:
        self._requests: queue.SimpleQueue[tuple[Command, Future[Child]]] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def start(self, command: Command) -> Child:
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="engineworks-children", daemon=True)
                self._thread.start()
        future: Future[Child] = Future()
        self._requests.put((command, future))
        return future.result()

    def _work(self) -> None:
        # Children inherit the mask: a Ctrl-C while their interpreter starts must not end them with a traceback.
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        while True:
            command, future = self._requests.get()
            try:
                future.set_result(Child(command))
            except Exception as error:  # noqa: BLE001  not swallowed: the caller gets it
                future.set_exception(error)


_starter = _Starter()


def start_child(command: Command) -> Child:
    """Start a child. Raises OSError if the system cannot."""
    return Child(command) if command.fork else _starter.start(command)


def _forget_starter() -> None:
    """Drop the starter: a forked process has only its main thread."""
    global _starter
    _starter = _Starter()


os.register_at_fork(after_in_child=_forget_starter)
