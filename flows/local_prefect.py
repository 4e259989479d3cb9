"""A Prefect API for one build, where no Prefect server runs: quick to start, loses no task run, leaves nothing behind.

    with prefect_api(settings.prefect_home) as prefect:   # returns at once: the server starts as a child
        plan = ...                                        # planning and imports go on meanwhile
        prefect.wait_ready()                              # just before the first flow
        build_recipe(plan)
    # here every task run is in the database and no process is left

Where PREFECT_API_URL is set in the environment, that server is used and none is started.

Prefect reads its environment when it is imported, so `start` sets the environment of this process (PREFECT_HOME:
nothing is read from or written to ~/.prefect; the API's address and password; no telemetry) and only `wait_ready`
imports Prefect. If it was imported before, its settings are read again. `stop` puts the environment back.

Why not Prefect's own ephemeral server: it costs 7 s (13 s in a fresh home) and is stopped before its queues are empty,
so that of 100 task runs 40 to 90 were recorded.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import secrets
import selectors
import shlex
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO

from engineworks.errors import StepError
from flows import local_prefect_server

logger = logging.getLogger(__name__)

START_LIMIT_S = 120.0
DRAIN_LIMIT_S = 60.0
STOP_LIMIT_S = 90.0  # longer than the server's own limit
LOG_BYTES_MAX = 1_000_000

NO_TELEMETRY = {"DO_NOT_TRACK": "true", "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
# What the server of one build does without. Events are not stored: they would be 80 % of the database, for the event
# feed of the pages alone; task runs and their states are written by another listener of the same events.
SERVER_SETTINGS = {
    **NO_TELEMETRY,
    "PREFECT_SERVER_LOGGING_LEVEL": "WARNING",
    "PREFECT_SERVER_REGISTER_BLOCKS_ON_START": "false",
    "PREFECT_SERVER_MEMOIZE_BLOCK_AUTO_REGISTRATION": "false",  # or a later server believes that they are registered
    "PREFECT_SERVER_SERVICES_TRIGGERS_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_ENABLED": "false",
    "PREFECT_SERVER_EVENTS_STREAM_OUT_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": "2000",
}


class LocalPrefect:
    """The API that the flows of one build talk to; use it through `prefect_api`.

    Call `wait_ready`, the flows and `stop` in one thread: Prefect's settings are context variables.
    """

    def __init__(self, home: Path) -> None:
        self.home = home
        self.given_url = os.environ.get("PREFECT_API_URL", "")
        self._server: _Server | None = None
        self._imported_before = False
        self._undo = contextlib.ExitStack()

    def start(self) -> None:
        """Start the server, unless the user has one, and set the environment; returns in some 10 ms.

        Raises StepError where no server can be started in `home`.
        """
        self._imported_before = "prefect.context" in sys.modules
        if self.given_url:
            self._undo.enter_context(_environment(NO_TELEMETRY))
            return
        self._server = _Server(self.home.resolve())
        values = {
            **NO_TELEMETRY,
            "PREFECT_HOME": str(self._server.home),
            "PREFECT_API_URL": self._server.url,
            "PREFECT_API_AUTH_STRING": self._server.password,
            "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "false",
            "PREFECT_CLIENT_CSRF_SUPPORT_ENABLED": "false",
        }
        self._undo.enter_context(_environment(values, without=("PREFECT_API_KEY", "PREFECT_PROFILE")))

    def wait_ready(self, timeout_s: float = START_LIMIT_S) -> str:
        """Import Prefect (1 s, while the server starts), wait until the API answers, and return its address.

        Raises StepError, with the end of the server's log, where it does not answer within `timeout_s`.
        """
        import prefect.context
        from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

        if self._imported_before:
            before = prefect.context.GLOBAL_SETTINGS_CONTEXT
            self._undo.callback(setattr, prefect.context, "GLOBAL_SETTINGS_CONTEXT", before)
            prefect.context.refresh_global_settings_context()
        self._undo.enter_context(_quiet_runs())
        if self._server is None:
            _check_answers(self.given_url)
            return self.given_url
        # A flow waits a second for its heartbeat thread to end, and nobody watches the heartbeats of this server.
        self._undo.enter_context(temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}))
        self._server.wait_ready(timeout_s)
        return self._server.url

    def stop(self) -> None:
        """Send what this process still holds, wait until the server has written it, and end the server.

        Called after an exception or Ctrl-C it does the same; a Ctrl-C while it waits kills the server instead.
        Raises StepError where the server has died by itself: then the history of this build has gaps.
        """
        server, self._server = self._server, None
        with contextlib.ExitStack() as last:
            if server is not None:
                last.callback(server.stop)
            last.push(self._undo)
            if server is None or server.lives():
                drain()
            else:
                drop_unsent()

    def pages_hint(self) -> str:
        """How to open Prefect's pages with these runs, for the end of a build's output."""
        if self.given_url:
            return f"Prefect's pages: on the server at {self.given_url}"
        environment = {"PREFECT_HOME": str(self.home), **NO_TELEMETRY}
        words = " ".join(f"{name}={shlex.quote(value)}" for name, value in environment.items())
        return f"Prefect's pages: {words} prefect server start, then open http://127.0.0.1:4200"


@contextlib.contextmanager
def prefect_api(home: Path) -> Iterator[LocalPrefect]:
    """The API for the flows of one build, its database in `home`; see the top of this module.

    Raises StepError where no server can be started in `home`.
    """
    prefect = LocalPrefect(home)
    try:
        prefect.start()
        yield prefect
    finally:
        prefect.stop()


def drain(timeout_s: float = DRAIN_LIMIT_S) -> bool:
    """Send the states and log lines that wait in this process's queues of Prefect; False if some could not be sent.

    Flows run after this start new queues.
    """
    if "prefect.events.worker" not in sys.modules:
        return True
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogWorker

    emptied: list[bool] = []

    def drain_both() -> None:
        for worker in (EventsWorker, APILogWorker):
            logging.getLogger(worker.__name__).setLevel(logging.ERROR)  # it warns of every item that it still has
            result = worker.drain_all(timeout=timeout_s)
            emptied.append(isinstance(result, tuple) and not result[1])
            logging.getLogger(worker.__name__).setLevel(logging.NOTSET)

    # In a thread of its own, because where an event loop runs `drain_all` would return a coroutine.
    thread = threading.Thread(target=drain_both, daemon=True)
    thread.start()
    thread.join(2 * timeout_s)
    if emptied != [True, True]:
        logger.warning("Prefect's queues were not empty after %.0f s: its history of this build has gaps", timeout_s)
        return False
    return True


def drop_unsent() -> None:
    """Empty those queues: where the server is gone, Prefect tries 8 s for each item, at the end of the process too."""
    if "prefect.events.worker" not in sys.modules:
        return
    from prefect.events.worker import EventsWorker

    for service in list(EventsWorker._instances.values()):  # of both workers
        with contextlib.suppress(queue.Empty):
            while True:
                service._queue.get_nowait()


class _Server:
    """The child process: it lives until its standard input closes, which the kernel does when we die."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.password = f"engineworks:{secrets.token_urlsafe(24)}"  # 127.0.0.1 is open to everyone on this machine
        self._is_ready = False
        self._log_path = home / "server.log"
        try:
            home.mkdir(parents=True, exist_ok=True)
            with socket.create_server(("127.0.0.1", 0)) as listener, self._open_log() as log:
                self.url = f"http://127.0.0.1:{listener.getsockname()[1]}/api"
                self._child = self._spawn(listener.fileno(), log)
        except OSError as error:
            raise StepError(f"{home}: Prefect's server can not be started in this folder: {error}") from error

    def _open_log(self) -> IO[bytes]:
        too_long = self._log_path.exists() and self._log_path.stat().st_size > LOG_BYTES_MAX
        log = self._log_path.open("wb" if too_long else "ab")
        self._log_start = log.tell()
        return log

    def _spawn(self, listener_fd: int, log: IO[bytes]) -> subprocess.Popen[bytes]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
        settings = {
            **SERVER_SETTINGS,
            "PREFECT_HOME": str(self.home),
            "PREFECT_SERVER_API_AUTH_STRING": self.password,
        }
        return subprocess.Popen(
            [sys.executable, "-P", local_prefect_server.__file__, str(listener_fd)],
            env={**inherited, **settings},
            cwd=self.home,  # where no .env or prefect.toml of another project lies
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            pass_fds=(listener_fd,),
            start_new_session=True,  # Ctrl-C in the terminal is for us alone; the server must outlive the last states
        )

    def wait_ready(self, timeout_s: float) -> None:
        """Raises StepError where the server ends, or says nothing for `timeout_s`."""
        if self._is_ready:
            return
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
        return self._child.poll() is None

    def stop(self) -> None:
        """End the child and wait for it: at once where it was still starting, else when it has written all.

        Raises StepError where it has ended before.
        """
        died = self._is_ready and not self.lives()
        with self._child as child:  # closes the pipes: the end of its input is what the server waits for
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
        assert self._child.stdin is not None
        self._child.stdin.close()
        try:
            return self._child.wait(STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            return None


@contextlib.contextmanager
def _environment(values: Mapping[str, str], without: tuple[str, ...] = ()) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in (*values, *without)}
    os.environ.update(values)
    for name in without:
        os.environ.pop(name, None)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _quiet_runs() -> Iterator[None]:
    """Keep the runs' own log lines off the console, where the command prints its progress; the API still gets them all.

    PREFECT_LOGGING_LEVEL would empty the API's logs too. Warnings of the rest of Prefect still show.
    """
    runs = [logging.getLogger(f"prefect.{name}") for name in ("flow_runs", "task_runs")]
    engine = logging.getLogger("prefect.engine")  # advertises a page that our server does not have
    before = [(run, run.propagate) for run in runs], engine.level
    for run in runs:
        run.propagate = False
    engine.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for run, propagate in before[0]:
            run.propagate = propagate
        engine.setLevel(before[1])


def _check_answers(url: str) -> None:
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        error = client.api_healthcheck()
    if error is not None:
        raise StepError(
            f"no Prefect API answers at PREFECT_API_URL={url}: {error}",
            hint="start that server, or unset PREFECT_API_URL to have one started for this build",
        )
