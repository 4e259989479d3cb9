"""Ends a child process with its parent, `kill -9` of the parent included."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1
"""prctl(2): the signal that the kernel sends when the thread that started this process ends."""

SCRIPT = (
    "import sys; from engineworks.host.parent import run_script; "
    "run_script(int(sys.argv[1]), sys.argv[2], sys.argv[3:])"
)
"""For `python -c`, with the parent's process id, a script and its arguments: within milliseconds, before the script's
imports, the child is bound to its parent."""


def die_with_parent(parent: int) -> None:
    """End this process when its parent ends. parent: the process id that the parent had when it started this one."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it ended before the kernel got the request
        os._exit(1)


def run_script(parent: int, script: str, arguments: list[str]) -> None:
    """Run a Python file as the main program of this process, which ends with its parent."""
    die_with_parent(parent)
    import runpy

    sys.argv = [script, *arguments]
    runpy.run_path(script, run_name="__main__")
