"""A Prefect API for one build without a Prefect server: quick to start, loses no task run, leaves no process.

    with prefect_api(settings.prefect_home) as prefect:   # sets the environment
        prefect.load()                                    # imports Prefect; the server starts as a child
        plan = ...                                        # other imports go on meanwhile
        prefect.wait_ready()                              # just before the first flow
        build_recipe(plan)
    # here every task run is in the database and no process is left

If the environment sets PREFECT_API_URL, that server is used and none is started.

Prefect reads its environment when it is imported, so `start` sets the environment of this process before. In a process
without threads `load` then imports Prefect, and the server is a fork. Elsewhere `start` starts the server, which
imports Prefect while `load` does so here. The environment holds PREFECT_HOME (~/.prefect is neither read nor written),
the API's address and password, and no telemetry. If Prefect was imported before, its settings are read again. `stop`
restores the environment.

Prefect's own ephemeral server costs 7 s (13 s in a fresh home) and stops before its queues are empty: of 100 task
runs it recorded 40 to 90.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

from engineworks.errors import StepError
from engineworks.host.atomic_write import write_atomically
from engineworks.host.child.supervise import may_fork
from engineworks.host.collector import not_collected
from engineworks.tracking.pages import LOCAL_PREFECT
from flows.local_prefect_child import NO_TELEMETRY, ServerChild

logger = logging.getLogger(__name__)

START_LIMIT_S = 120.0
DRAIN_LIMIT_S = 60.0
FIRST_RUN_IMPORTS = ("prefect.flow_engine", "prefect.task_engine", "fastapi.encoders")
"""Modules that Prefect imports in the first flow run (0.25 s), imported earlier while the server starts."""


class LocalPrefect:
    """The API that the flows of one build use; get it through `prefect_api`.

    Call `wait_ready`, the flows and `stop` in one thread: Prefect's settings are context variables.
    """

    def __init__(self, home: Path) -> None:
        self.home = home
        self.given_url = os.environ.get("PREFECT_API_URL", "")
        self._server: ServerChild | None = None
        self._imported_before = False
        self._entered = False
        self._undo = contextlib.ExitStack()

    def start(self) -> None:
        """Start the server, unless the user has one, and set the environment.

        Raises StepError if no server can start in `home`.
        """
        self._imported_before = "prefect.context" in sys.modules
        if self.given_url:
            self._undo.enter_context(_environment(NO_TELEMETRY))
            return
        self._server = ServerChild(self.home.resolve())
        values = {
            **NO_TELEMETRY,
            **_without_proxy("127.0.0.1"),
            "PREFECT_HOME": str(self._server.home),
            "PREFECT_API_URL": self._server.url,
            "PREFECT_API_AUTH_STRING": self._server.password,
            "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "false",
            "PREFECT_CLIENT_CSRF_SUPPORT_ENABLED": "false",
            "PREFECT_UI_URL": LOCAL_PREFECT,  # where `prefect server start` shows this server's runs
            "PREFECT_API_SSL_CERT_FILE": str(_one_certificate(self._server.home)),
            "PREFECT_CLIENT_MAX_RETRIES": "3",  # 5 would mean two minutes of silence after the server died
        }
        self._undo.enter_context(_environment(values, without=("PREFECT_API_KEY", "PREFECT_PROFILE")))
        if self._imported_before or not may_fork():
            self._server.start(fork=False)

    def load(self) -> None:
        """Import Prefect (.5 s) and set it up; fork the server, if it is none already. A second call does nothing."""
        if self._entered:
            return
        with not_collected():
            self._enter_settings()
        self._entered = True
        if self._server is not None and not self._server.started:
            self._server.start(fork=may_fork())

    def wait_ready(self, timeout_s: float = START_LIMIT_S) -> str:
        """Call `load`, wait until the API answers, and return its address.

        Raises StepError, with the end of the server's log, if it does not answer within `timeout_s`.
        """
        self.load()
        if self._server is None:
            check_answers(self.given_url)
            return self.given_url
        self._server.wait_ready(timeout_s)
        return self._server.url

    def _enter_settings(self) -> None:
        for name in FIRST_RUN_IMPORTS:
            importlib.import_module(name)
        import prefect.context
        from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

        if self._imported_before:
            before = prefect.context.GLOBAL_SETTINGS_CONTEXT
            self._undo.callback(setattr, prefect.context, "GLOBAL_SETTINGS_CONTEXT", before)
            prefect.context.refresh_global_settings_context()
        self._undo.enter_context(_quiet_runs())
        if self._server is not None:
            # A flow waits a second for its heartbeat thread to end, and nothing reads the heartbeats of this server.
            self._undo.enter_context(temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}))

    def stop(self) -> None:
        """Send pending data of this process, wait until the server has written it, and end the server.

        After an exception or Ctrl-C it does the same; a Ctrl-C while it waits kills the server instead. Raises
        StepError if the server died by itself, because the history of this build then has gaps.
        """
        server, self._server = self._server, None
        with contextlib.ExitStack() as last:
            if server is not None:
                last.callback(server.stop)
            last.push(self._undo)
            if server is None or server.lives():
                drain()


@contextlib.contextmanager
def prefect_api(home: Path) -> Iterator[LocalPrefect]:
    """Provide the API for the flows of one build, with its database in `home`; see the top of this module.

    Raises StepError if no server can start in `home`.
    """
    prefect = LocalPrefect(home)
    try:
        prefect.start()
        yield prefect
    finally:
        prefect.stop()


def drain(timeout_s: float = DRAIN_LIMIT_S) -> bool:
    """Send pending states and log lines of this process's Prefect queues; False if some could not be sent.

    Flows run after this start new queues.
    """
    if "prefect.events.worker" not in sys.modules:
        return True
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogWorker

    emptied: list[bool] = []

    def drain_both() -> None:
        for worker in (EventsWorker, APILogWorker):
            logging.getLogger(worker.__name__).setLevel(logging.ERROR)  # it warns of every item still pending
            result = worker.drain_all(timeout=timeout_s)
            emptied.append(isinstance(result, tuple) and not result[1])
            logging.getLogger(worker.__name__).setLevel(logging.NOTSET)

    # In its own thread, because where an event loop runs `drain_all` would return a coroutine.
    thread = threading.Thread(target=drain_both, daemon=True)
    thread.start()
    thread.join(2 * timeout_s)
    if emptied != [True, True]:
        logger.warning("Prefect's queues were not empty after %.0f s: its history of this build has gaps", timeout_s)
        return False
    return True


def _one_certificate(home: Path) -> Path:
    """Write the first of certifi's certificates to a file of its own, and return that.

    Each of Prefect's clients prepares TLS, here for an address that has none: with all certificates that takes 18 ms,
    six times in a build.
    """
    import certifi

    first, end, _ = Path(certifi.where()).read_bytes().partition(b"-----END CERTIFICATE-----\n")
    file = home / "certificate.pem"
    write_atomically(file, first + end)
    return file


def _without_proxy(host: str) -> dict[str, str]:
    """Return settings with which httpx and websockets reach a host of this machine despite HTTP_PROXY."""
    before = os.environ.get("no_proxy") or os.environ.get("NO_PROXY")
    value = f"{before},{host}" if before else host
    return {"no_proxy": value, "NO_PROXY": value}


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
    """Keep the runs' own log lines off the console, where the command prints its progress; the API still gets them.

    PREFECT_LOGGING_LEVEL would empty the API's logs too. Other warnings of Prefect still show.
    """
    runs = [logging.getLogger(f"prefect.{name}") for name in ("flow_runs", "task_runs")]
    engine = logging.getLogger("prefect.engine")  # advertises a page that this server lacks
    before = [(run, run.propagate) for run in runs], engine.level
    for run in runs:
        run.propagate = False
    engine.setLevel(logging.WARNING)
    raises, logging.raiseExceptions = logging.raiseExceptions, False  # Prefect prints what its API did not take
    try:
        yield
    finally:
        for run, propagate in before[0]:
            run.propagate = propagate
        engine.setLevel(before[1])
        logging.raiseExceptions = raises


def check_answers(url: str) -> None:
    """Check that a Prefect API answers there. Raises StepError with the reason if none does."""
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings

    with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}), get_client(sync_client=True) as client:
        error = client.api_healthcheck()
    if error is not None:
        raise StepError(
            f"no Prefect API answers at PREFECT_API_URL={url}: {error}",
            hint="start that server, or unset PREFECT_API_URL to have one started for this build",
        )
