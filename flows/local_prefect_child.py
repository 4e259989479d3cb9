"""The parent's side of a private Prefect server (`local_prefect_server`): start the child, wait for it, end it.

Where this process may be forked, the child begins with the modules that were imported here, Prefect among them: that
halves its imports. Elsewhere, and in a process with threads, it is a new interpreter.
"""

from __future__ import annotations

import logging
import os
import secrets
import selectors
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, NoReturn

from engineworks.errors import StepError
from engineworks.host.child.supervise import SCRIPT, die_with, go_on
from flows import local_prefect_server

logger = logging.getLogger(__name__)

STOP_LIMIT_S = 90.0  # longer than the server's own limit
LOG_BYTES_MAX = 1_000_000

NO_TELEMETRY = {"DO_NOT_TRACK": "true", "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
# Disabled for the server of one build. Events are not stored: they would be 80% of the database, used only by the event
# feed of the pages. Another listener of the same events writes task runs and their states.
SERVER_SETTINGS = {
    **NO_TELEMETRY,
    "PREFECT_SERVER_LOGGING_LEVEL": "WARNING",
    "PY_KEY_VALUE_DISABLE_BEARTYPE": "true",  # of a dependency of Prefect: checks types of its calls, .1 s to prepare
    "PREFECT_SERVER_REGISTER_BLOCKS_ON_START": "false",
    "PREFECT_SERVER_MEMOIZE_BLOCK_AUTO_REGISTRATION": "false",  # else a later server believes that they are registered
    "PREFECT_SERVER_SERVICES_TRIGGERS_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_ENABLED": "false",
    "PREFECT_SERVER_EVENTS_STREAM_OUT_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": "2000",
}


class ServerChild:
    """The child process: it lives until its standard input closes, and ends at once with the thread that started it,
    `kill -9` included. Start it from a thread that lives as long as it is needed."""

    def __init__(self, home: Path) -> None:
        """Bind the address that clients connect to; `start` starts the process. Raises StepError."""
        self.home = home
        self.password = f"engineworks:{secrets.token_urlsafe(24)}"  # every user of this machine can reach 127.0.0.1
        self._child: subprocess.Popen[bytes] | None = None
        self._is_ready = False
        self._log_path = home / "server.log"
        with self._named_errors():
            home.mkdir(parents=True, exist_ok=True)
            self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/api"

    @property
    def started(self) -> bool:
        return self._child is not None

    def start(self, *, fork: bool) -> None:
        """Start the process. fork: as a copy of this one. Raises StepError."""
        with self._named_errors(), self._listener, self._open_log() as log:
            self._child = self._spawn(self._listener.fileno(), log, fork=fork)

    @contextmanager
    def _named_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StepError(
                f"{self.home}: Prefect's server cannot be started in this folder: {error.strerror or error}",
                hint="it must be a folder that can be written; ENGINEWORKS_ARTIFACTS names another",
            ) from error

    def _open_log(self) -> IO[bytes]:
        too_long = self._log_path.exists() and self._log_path.stat().st_size > LOG_BYTES_MAX
        log = self._log_path.open("wb" if too_long else "ab")
        self._log_start = log.tell()
        return log

    def _spawn(self, listener_fd: int, log: IO[bytes], *, fork: bool) -> subprocess.Popen[bytes]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
        settings = {**SERVER_SETTINGS, "PREFECT_HOME": str(self.home), "PREFECT_SERVER_API_AUTH_STRING": self.password}
        env = {**inherited, **settings}
        command = [sys.executable, "-P", "-c", SCRIPT, str(os.getpid()), local_prefect_server.__file__]
        serving = partial(serve_forked, os.getpid(), listener_fd)
        return subprocess.Popen(
            [*command, str(listener_fd)],
            preexec_fn=partial(go_on, serving, env, listener_fd) if fork else None,
            env=env,
            cwd=self.home,  # no .env or prefect.toml of another project lies here
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            pass_fds=(listener_fd,),
            start_new_session=True,  # Ctrl-C in the terminal must not end the server before the last states
        )

    def wait_ready(self, timeout_s: float) -> None:
        """Wait until the server is ready. Raises StepError if it ends, or is silent for `timeout_s`."""
        if self._is_ready:
            return
        assert self._child is not None
        assert self._child.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._child.stdout, selectors.EVENT_READ)
            answered = bool(selector.select(timeout_s))
        self._is_ready = answered and self._child.stdout.readline() == local_prefect_server.READY
        if not self._is_ready:
            what = "ended" if answered else f"was not ready after {timeout_s:.0f} s"
            raise StepError(
                f"Prefect's server {what} while it was starting in {self.home}",
                hint=f"read {self._log_path}; if its database is damaged, move {self.home / 'prefect.db'} away",
                log=self._log_tail(),
            )

    def _log_tail(self) -> str:
        with self._log_path.open("rb") as log:
            log.seek(max(self._log_start, self._log_path.stat().st_size - 10_000))
            return log.read().decode(errors="replace")

    def lives(self) -> bool:
        return self._child is not None and self._child.poll() is None

    def stop(self) -> None:
        """End the child and wait for it: at once if it is still starting, else after it has written all.

        Raises StepError if it has ended before.
        """
        if self._child is None:
            self._listener.close()
            return
        died = self._is_ready and not self.lives()
        with self._child as child:  # closes the pipes: the server waits for the end of its input
            try:
                if self._is_ready and not died and self._end_softly() != 0:
                    logger.warning("Prefect's history of this build may have gaps: see %s", self._log_path)
            finally:
                if child.poll() is None:
                    child.kill()
        if died:
            raise StepError(
                f"Prefect's server ended (exit code {child.returncode}) in the middle of the build",
                hint=f"what was built is in the store; build again, or read {self._log_path}",
                log=self._log_tail(),
            )

    def _end_softly(self) -> int | None:
        assert self._child is not None
        assert self._child.stdin is not None
        self._child.stdin.close()
        try:
            return self._child.wait(STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            return None


def serve_forked(parent: int, listener_fd: int) -> NoReturn:
    """Serve as a fork of the parent, which has imported Prefect, on its open socket. Settings are read again."""
    import prefect.context

    die_with(parent, signal.SIGKILL)
    prefect.context.refresh_global_settings_context()
    local_prefect_server.run(listener_fd, parent)
