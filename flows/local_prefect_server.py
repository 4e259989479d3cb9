"""The private Prefect API of one build; `local_prefect` starts it as a child: `python local_prefect_server.py FD`.

The child serves on the listening socket FD and prints `ready` on its standard output. It ends itself once its standard
input is closed (or its parent is gone) and everything it received is in the database. Environment variables hold its
settings. `local_prefect_child` may also fork it from a process that has imported Prefect, by `run`.

`make prefect-schema` rewrites local_prefect_schema.sql after an upgrade of Prefect. An older one still works: Prefect
migrates it.
"""

from __future__ import annotations

import asyncio
import base64
import gc
import hmac
import importlib
import importlib.metadata
import importlib.util
import json
import os
import re
import socket
import sqlite3
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from engineworks.host.lock import locked

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

READY = b"ready\n"
IDLE_LIMIT_S = 60.0
POLL_S = 0.02
SCHEMA_FILE = Path(__file__).with_name("local_prefect_schema.sql")
_HEADER = "-- Prefect {version}, revision {revision}: what its migrations make of an empty SQLite file."


ROUTERS = ("admin", "flows", "flow_runs", "artifacts", "logs", "events", "task_runs")
"""Modules of `prefect.server.api` whose routes our flows use, the rarest last: FastAPI builds routes while it searches
a request's. Importing the other modules takes .2 s of processor time."""

ALL_ROUTES = "prefect.server.api.server"


class Schema(NamedTuple):
    """Text that makes an empty Prefect database, its alembic revision, and the version that wrote it."""

    version: str
    revision: str
    sql: str


def read_schema(path: Path = SCHEMA_FILE) -> Schema | None:
    """Read the shipped schema; None if the file is missing, in which case Prefect runs its own migrations."""
    if not path.exists():
        return None
    sql = path.read_text(encoding="utf-8")
    header = re.match(re.escape(_HEADER).replace(r"\{version\}", "(.+)").replace(r"\{revision\}", "(.+)"), sql)
    return Schema(header[1], header[2], sql) if header else None


def write_schema(path: Path) -> None:
    """Let the installed Prefect migrate an empty database, 8 s, and write the result where `read_schema` reads it."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["PREFECT_HOME"] = folder
        from prefect.server.database import provide_database_interface

        asyncio.run(provide_database_interface().create_db())
        path.write_text(dump_schema(Path(folder, "prefect.db")), encoding="utf-8")


def dump_schema(database: Path) -> str:
    """Dump a database that Prefect's migrations just made: tables, indexes and their revision."""
    with closing(sqlite3.connect(database)) as connection:
        revision = connection.execute("SELECT version_num FROM alembic_version").fetchone()[0]
        statements = connection.execute("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL ORDER BY rowid")
        lines = [_HEADER.format(version=importlib.metadata.version("prefect"), revision=revision)]
        lines += [f"{sql};" for (sql,) in statements]
    return "\n".join([*lines, f"INSERT INTO alembic_version VALUES ('{revision}');", ""])


def create_database(database: Path, schema: Schema) -> None:
    """Write an empty database in one rename: 20 ms instead of the 5 s that 113 migrations take.

    If the installed Prefect is older and does not know the revision, it migrates by itself.
    """
    spec = importlib.util.find_spec("prefect")
    folder = Path(spec.origin).parent / "server/database/_migrations/versions/sqlite" if spec and spec.origin else None
    if folder is None or not any(folder.glob(f"*{schema.revision}*.py")):
        return
    unfinished = database.with_suffix(".new")
    unfinished.unlink(missing_ok=True)
    with closing(sqlite3.connect(unfinished)) as connection:
        connection.executescript(f"BEGIN;\n{schema.sql}\nCOMMIT;")
    unfinished.rename(database)


def is_at_head(database: Path, schema: Schema) -> bool:
    """Return whether the database has the revision of the installed Prefect, as far as the schema shows."""
    if schema.version != importlib.metadata.version("prefect") or not database.exists():
        return False
    with closing(sqlite3.connect(database, timeout=60)) as connection:
        tables = connection.execute("SELECT name FROM sqlite_master WHERE name = 'alembic_version'").fetchall()
        return bool(tables) and connection.execute("SELECT version_num FROM alembic_version").fetchall() == [
            (schema.revision,)
        ]


class Inbox:
    """An ASGI app that records received task run states, to look them up in the database at the end.

    They come as events through WebSockets; an event's id becomes its state's id.
    """

    def __init__(self, app: ASGIApp, database: Path) -> None:
        self.app = app
        self.database = database
        self.sockets_open = 0
        self._unseen: set[str] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "websocket":
            return await self.app(scope, receive, send)

        async def noted() -> Message:
            message = await receive()
            self._note(message.get("text") or "")
            return message

        self.sockets_open += 1
        try:
            await self.app(scope, noted, send)
        finally:
            self.sockets_open -= 1

    def _note(self, text: str) -> None:
        if '"prefect.task-run.' in text:
            event = json.loads(text)
            if event.get("event", "").startswith("prefect.task-run.") and "validated_state" in event.get("payload", {}):
                self._unseen.add(event["id"])

    def unsaved(self) -> int:
        """Return how many received states are not in the database."""
        with closing(sqlite3.connect(self.database, timeout=60)) as connection:
            for ids in _batches(list(self._unseen), 500):
                marks = ",".join("?" * len(ids))
                saved = connection.execute(f"SELECT id FROM task_run_state WHERE id IN ({marks})", ids)
                self._unseen.difference_update(state_id for (state_id,) in saved)
        return len(self._unseen)

    def may_close(self) -> bool:
        """Return whether Prefect's services can stop without a loss.

        They stop whatever waits on the in-memory bus between them, which is where task runs get lost. When stopped, the
        recorder writes what it has taken from the bus, up to one batch.
        """
        from prefect.server.utilities.messaging.memory import METRICS
        from prefect.settings import get_current_settings

        batch = get_current_settings().server.services.task_run_recorder.batch_size
        on_the_bus = any(topic["consumed"] < topic["published"] for topic in METRICS.values())
        return not self.sockets_open and not on_the_bus and self.unsaved() <= batch


def _batches(items: list[str], size: int) -> Iterator[list[str]]:
    return (items[i : i + size] for i in range(0, len(items), size))


class Guard:
    """An ASGI app that asks HTTP requests for the password, as Prefect's own does. Its routes check WebSockets."""

    def __init__(self, app: ASGIApp, password: str) -> None:
        """password: `name:password`."""
        self.app = app
        self._wanted = b"Basic " + base64.b64encode(password.encode())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            given = dict(scope["headers"]).get(b"authorization", b"")
            if not hmac.compare_digest(given, self._wanted):
                await send({"type": "http.response.start", "status": 401, "headers": []})
                await send({"type": "http.response.body", "body": b"Unauthorized"})
                return
        await self.app(scope, receive, send)


class LazyModule(ModuleType):
    """Stands for a module, of which others import `function`: loads it when that is called or anything else is used."""

    def __init__(self, name: str, function: str) -> None:
        super().__init__(name)
        setattr(self, function, lambda *arguments: getattr(self._load(), function)(*arguments))

    def _load(self) -> ModuleType:
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return importlib.import_module(self.__name__)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # an import looks for __path__
            raise AttributeError(name)
        return getattr(self._load(), name)


def create_app(*, migrate: bool) -> ASGIApp:
    """Create Prefect's API with the one service that our flows use. migrate: the database, at the start.

    Prefect's own `create_app` also builds 300 routes and its pages, and polls a task queue in memory for services that
    serve deployments.
    """
    import sqlalchemy.exc
    from fastapi import FastAPI
    from prefect.logging.configuration import ensure_logging_setup
    from prefect.server.database import provide_database_interface
    from prefect.server.exceptions import ObjectNotFoundError
    from prefect.server.services.task_run_recorder import TaskRunRecorder

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        if migrate:
            await provide_database_interface().create_db()
        async with TaskRunRecorder.running():
            yield

    # Statuses as of Prefect's own API. Anything else becomes a 500, and its traceback goes to the log.
    handlers: dict[Any, Any] = {
        sqlalchemy.exc.OperationalError: _try_again,
        sqlalchemy.exc.IntegrityError: partial(_answer, 409),
        ObjectNotFoundError: partial(_answer, 404),
    }
    ensure_logging_setup()
    # At every state Prefect imports this test of exceptions, and with it all 300 routes: .12 s at the first.
    sys.modules.setdefault(ALL_ROUTES, LazyModule(ALL_ROUTES, "is_client_retryable_exception"))
    app = FastAPI(lifespan=lifespan, exception_handlers=handlers)
    for name in ROUTERS:
        app.include_router(importlib.import_module(f"prefect.server.api.{name}").router, prefix="/api")
    app.mount("/api", partial(_all_routes, handlers))
    return Guard(app, _password())


async def _all_routes(handlers: dict[Any, Any], scope: Scope, receive: Receive, send: Send) -> None:
    """Answer a request for another of Prefect's routes. Prefect keeps the app that it makes for the first."""
    from prefect.server.api import server

    await server.create_api_app(fast_api_app_kwargs={"exception_handlers": handlers})(scope, receive, send)


async def _answer(status: int, _: Request, error: Exception) -> Response:
    from starlette.responses import JSONResponse

    return JSONResponse({"exception_message": str(error)}, status)


async def _try_again(request: Request, error: Exception) -> Response:
    """The client sends the request again after a 503."""
    if "database is locked" not in str(error):
        raise error
    return await _answer(503, request, error)


def _password() -> str:
    from prefect.settings import get_current_settings

    secret = get_current_settings().server.api.auth_string
    assert secret is not None
    return secret.get_secret_value()


async def warm_up(app: ASGIApp) -> None:
    """Do the work that FastAPI and SQLAlchemy defer to the first request, 0.3 s, while the build still imports."""
    import httpx

    name, _, password = _password().partition(":")
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://local", auth=(name, password)) as client:
        for path in ("flows", "flow_runs"):
            (await client.post(f"/api/{path}/filter", json={"limit": 1})).raise_for_status()


async def wait_for_end(parent: int) -> None:
    """Return when the parent has closed our standard input, or is no longer our parent (`kill -9`)."""
    loop, ended = asyncio.get_running_loop(), asyncio.Event()

    def read_to_end() -> None:
        while os.read(0, 1024):
            pass
        loop.call_soon_threadsafe(ended.set)

    threading.Thread(target=read_to_end, daemon=True).start()
    while not ended.is_set() and os.getppid() == parent:
        try:
            await asyncio.wait_for(ended.wait(), timeout=0.5)
        except TimeoutError:
            continue


def must_migrate(database: Path) -> bool:
    """Make a missing database; return whether Prefect must look for migrations, because it may lack the last of 113.

    Call it holding the lock.
    """
    schema = read_schema()
    if schema is None:
        return True
    if not database.exists():
        create_database(database, schema)
    return not is_at_head(database, schema)


async def serve(listener: socket.socket, home: Path, parent: int, *, migrate: bool) -> bool:
    """Serve until `wait_for_end`, then until everything is in the database; False if something is missing there."""
    import uvicorn

    app = Inbox(create_app(migrate=migrate), home / "prefect.db")
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            lifespan="on",
            timeout_keep_alive=3600,  # a step may take an hour between two requests
            ws_ping_interval=None,  # native code may hold the client's GIL longer than any ping waits
        )
    )
    with locked(home / "server.lock"):  # if two first builds start at once, one migrates and the other finds it done
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        while not server.started and not serving.done():
            await asyncio.sleep(POLL_S)
    if server.started:
        gc.freeze()
        gc.enable()
        os.write(1, READY)
        await warm_up(app)
        await wait_for_end(parent)
        limit = time.monotonic() + IDLE_LIMIT_S
        while not app.may_close() and time.monotonic() < limit:
            await asyncio.sleep(POLL_S)
        server.should_exit = True
    await serving
    return server.started and not app.unsaved()


def run(listener_fd: int, parent: int) -> NoReturn:
    """Prepare the database, serve, and end without Python's tear-down: everything is written by then."""
    gc.disable()  # collecting takes a fifth of the time of importing 2200 modules and finds nothing
    home = Path(os.environ["PREFECT_HOME"])
    with locked(home / "server.lock"):
        migrate = must_migrate(home / "prefect.db")
    saved = asyncio.run(serve(socket.socket(fileno=listener_fd), home, parent, migrate=migrate))
    sys.stderr.flush()
    os._exit(0 if saved else 1)


if __name__ == "__main__":
    if sys.argv[1] == "--write-schema":
        write_schema(Path(sys.argv[2]))
    else:
        run(int(sys.argv[1]), os.getppid())
