"""Starts, feeds and kills one child process. See `engineworks.host.child`."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

BOOTSTRAP = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from engineworks.host.child.serve import serve; serve(int(sys.argv[2]), int(sys.argv[3]))"
)

END_S = 5.0
"""Seconds for a killed child to disappear; after that it is left to the kernel."""


def search_path() -> list[str]:
    """Return `sys.path`, with the current folder instead of the empty entry."""
    return [p or str(Path.cwd()) for p in sys.path]


class Child:
    """One child process and our ends of its non-blocking pipes.

    jobs: number of jobs done. peak_mib: maximum resident memory seen during its present job, MiB.
    """

    def __init__(self, env: Mapping[str, str]) -> None:
        self.env = dict(env)
        self.jobs = 0
        self.peak_mib = 0.0
        output, output_end = os.pipe()
        answers, answers_end = os.pipe()
        try:
            self._popen = subprocess.Popen(
                [sys.executable, "-c", BOOTSTRAP, json.dumps(search_path()), str(os.getpid()), str(answers_end)],
                stdin=subprocess.PIPE, stdout=output_end, stderr=output_end,
                pass_fds=(answers_end,), env=self.env, bufsize=0,
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

    @property
    def pid(self) -> int:
        return self._popen.pid

    def alive(self) -> bool:
        return self._popen.poll() is None

    @property
    def exit_code(self) -> int:
        """Return its exit code, negative for a signal; valid only after its end."""
        return self._popen.returncode or 0

    def send_early(self, message: Mapping[str, Any]) -> None:
        """Send a small message to a new child: its pipe is empty, so this never blocks."""
        os.write(self.jobs_fd, json.dumps(message).encode() + b"\n")

    def look_at_memory(self) -> None:
        """Record the peak of its resident memory (Linux: proc(5), VmHWM)."""
        try:
            with Path(f"/proc/{self.pid}/status").open(encoding="ascii", errors="replace") as status:
                line = next((line for line in status if line.startswith("VmHWM:")), None)
        except OSError:
            return
        if line is not None:
            self.peak_mib = max(self.peak_mib, int(line.split()[1]) / 1024)

    def kill(self) -> None:
        """Send SIGKILL to it and its descendants; the waiting caller notices."""
        below = descendants(self.pid) if self.alive() else ()
        self._popen.kill()
        for pid in below:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)

    def end(self) -> None:
        """Kill it, wait for its end, and close our ends of its pipes."""
        self.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._popen.wait(END_S)
        if self._open:
            self._open = False
            assert self._popen.stdin is not None
            self._popen.stdin.close()
            os.close(self.output_fd)
            os.close(self.answers_fd)


def descendants(pid: int) -> Sequence[int]:
    """Return the ids of the process's descendants (Linux: proc(5), field 4 of stat)."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            parent = stat.read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()[1]
            children.setdefault(int(parent), []).append(int(stat.parent.name))
    pids, pending = [], [pid]
    while pending:
        below = children.get(pending.pop(), [])
        pids += below
        pending += below
    return pids


class _Starter:
    """The one thread that starts children: it lives as long as the process, so children can too."""

    def __init__(self) -> None:
        self._requests: queue.SimpleQueue[tuple[Mapping[str, str], Future[Child]]] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def start(self, env: Mapping[str, str]) -> Child:
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="engineworks-children", daemon=True)
                self._thread.start()
        future: Future[Child] = Future()
        self._requests.put((env, future))
        return future.result()

    def _work(self) -> None:
        # Children inherit the mask: a Ctrl-C while their interpreter starts must not end them with a traceback.
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        while True:
            env, future = self._requests.get()
            try:
                future.set_result(Child(env))
            except Exception as error:  # noqa: BLE001  not swallowed: the caller gets it
                future.set_exception(error)


_starter = _Starter()


def start_child(env: Mapping[str, str]) -> Child:
    """Start a child with this environment. Raises OSError if the system cannot."""
    return _starter.start(env)


def _forget_starter() -> None:
    """Drop the starter: a forked process has only its main thread."""
    global _starter
    _starter = _Starter()


os.register_at_fork(after_in_child=_forget_starter)
