"""Child processes that end with their parent, `kill -9` of the parent included."""

from __future__ import annotations

import runpy
import signal
import sys
import threading

from engineworks.host.child.supervise import die_with
from engineworks.host.collector import COLLECTOR

SCRIPT = (
    "import sys; from engineworks.host.parent import run_script; "
    "run_script(int(sys.argv[1]), sys.argv[2], sys.argv[3:])"
)
"""For `python -c`, with the parent's process id, a script and its arguments: the child is bound to its parent before
the script's own imports."""


def run_script(parent: int, script: str, arguments: list[str]) -> None:
    """Run a Python file as the main program of this process, which the kernel kills when its parent's thread ends."""
    die_with(parent, signal.SIGKILL)
    sys.argv = [script, *arguments]
    runpy.run_path(script, run_name="__main__")


def may_fork() -> bool:
    """Return whether a fork of this process has all of it: no thread runs but this one, and the collector."""
    others = {thread.name for thread in threading.enumerate() if thread is not threading.current_thread()}
    return sys.platform == "linux" and others <= {COLLECTOR}
