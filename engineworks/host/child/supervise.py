"""A supervisor above each child: whatever the child leaves behind, even a daemon, ends with it.

The child's process forks before it does anything else. The parent becomes a subreaper (prctl(2)): the kernel hands it
every descendant that loses its own parent. Once the worker has ended, by itself or by a signal, the supervisor kills
all that is left, and then ends as the worker did. SIGTERM, also from the kernel when our process dies, ends all of it.
"""

from __future__ import annotations

import contextlib
import contextvars
import ctypes
import os
import resource
import runpy
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NoReturn

from engineworks.host.collector import COLLECTOR

PR_SET_PDEATHSIG = 1
"""prctl(2): the signal that the kernel sends when the thread that started this process ends."""

PR_SET_CHILD_SUBREAPER = 36
"""prctl(2): orphans below this process become its children."""

GONE_S = 4.0
"""Seconds to wait for killed processes; one that the kernel cannot end yet is left to it."""

_ENDS = {signal.SIGTERM, signal.SIGCHLD}


def supervise(parent: int, *, own_session: bool = False) -> None:
    """Return in a new process, the worker; this one supervises it and never returns.

    parent: the process id that must still be the parent's. own_session: signals to the worker's process group reach
    no other process of ours.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent handles it
    if sys.platform != "linux":
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, _ENDS)
    _prctl(PR_SET_CHILD_SUBREAPER, 1)
    die_with(parent, signal.SIGTERM)
    supervisor = os.getpid()
    worker = os.fork()
    if worker:
        _watch(worker)
    if own_session:
        os.setsid()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDS)
    die_with(supervisor, signal.SIGKILL)


def die_with(parent: int, number: signal.Signals) -> None:
    """Have the kernel send this signal to us once the parent ends, even by SIGKILL."""
    if sys.platform == "linux":
        _prctl(PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:  # it ended before the kernel got the request
        os._exit(1)


def _prctl(option: int, value: int) -> None:
    ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


def _watch(worker: int) -> NoReturn:
    nothing = os.open(os.devnull, os.O_RDWR)
    for fd in Path("/proc/self/fd").iterdir():  # its pipes must end with the worker
        with contextlib.suppress(OSError):
            os.dup2(nothing, int(fd.name))
    status = None
    while status is None:
        status = _reaped(worker)
        if status is None and signal.sigwait(_ENDS) == signal.SIGTERM:
            break
    end_children()
    _end_like(status)


def _reaped(worker: int) -> int | None:
    """Collect what has ended; return the worker's status if it is among it."""
    with contextlib.suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            if ended[0] == worker:
                return ended[1]
    return None


def end_children() -> None:
    """Kill every descendant of this process, a subreaper: those of a killed process become its children."""
    until = time.monotonic() + GONE_S
    while time.monotonic() < until:
        for pid in children(os.getpid()):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        try:
            if not os.waitpid(-1, os.WNOHANG)[0]:
                time.sleep(0.001)
        except ChildProcessError:
            return


def children(pid: int) -> list[int]:
    """Return the ids of the children of a process's main thread, oldest first (Linux: proc(5), children).

    Adopted processes come last. Where the kernel does not list them, all processes are searched (field 4 of stat).
    """
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()]
    except OSError:
        return [int(stat.parent.name) for stat in Path("/proc").glob("[0-9]*/stat") if _parent_of(stat) == pid]


def _parent_of(stat: Path) -> int:
    """Return the parent's id, 0 for a process that has ended meanwhile."""
    try:
        return int(stat.read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()[1])
    except OSError:
        return 0


def _end_like(status: int | None) -> NoReturn:
    """End by the worker's signal or with its exit code, without a core file of our own."""
    code = -signal.SIGTERM if status is None else os.waitstatus_to_exitcode(status)
    if code < 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDS)
        with contextlib.suppress(OSError):  # SIGKILL has one action only
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


SCRIPT = (
    "import sys; from engineworks.host.child.supervise import run_script; "
    "run_script(int(sys.argv[1]), sys.argv[2], sys.argv[3:])"
)
"""For `python -c`, with the parent's process id, a script and its arguments: the child is bound to its parent before
the script's own imports."""


def run_script(parent: int, script: str, arguments: list[str]) -> None:
    """Run a Python file as the main program of this process, which the kernel kills when its parent's thread ends."""
    die_with(parent, signal.SIGKILL)
    sys.argv = [script, *arguments]
    runpy.run_path(script, run_name="__main__")


def go_on(run: Callable[[], object], env: Mapping[str, str], fd: int) -> NoReturn:
    """Go on as a process of its own in a fork of ours, as the `preexec_fn` of `subprocess`: its command never runs.

    Standard input, output and error, the folder and the session are set. Of the parent's other descriptors `fd` is
    left; among the closed ones is the pipe by which `subprocess` waits for the command. The parent's context is left
    behind too: Prefect's settings are in it. Nothing runs that the parent does at its end.
    """
    code = 1
    try:
        os.closerange(3, fd)
        os.closerange(fd + 1, os.sysconf("SC_OPEN_MAX"))
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1) for number in (1, 2))
        os.environ.clear()
        os.environ.update(env)
        contextvars.Context().run(run)
        code = 0
    except BaseException:  # noqa: BLE001  the log gets it; nothing of the parent's may run here
        traceback.print_exc()
    finally:
        os._exit(code)


def may_fork() -> bool:
    """Return whether a fork of this process has all of it: no thread runs but this one, and the collector."""
    others = {thread.name for thread in threading.enumerate() if thread is not threading.current_thread()}
    return sys.platform == "linux" and others <= {COLLECTOR}
