"""PostgreSQL for Prefect and MLflow, on loopback: `python benchmarks/databases.py FOLDER [--port N]`.

`make databases` runs it. Makes a cluster in FOLDER unless there is one, starts it, makes the databases `prefect` and
`mlflow`, prints the two variables that name them as `export NAME=VALUE` lines, and stops the cluster when it is
interrupted or its standard input is closed. Only who can read FOLDER/password can connect. Needs PostgreSQL's own
programs (Debian: `apt-get install postgresql`). It refuses to run as root: then the Debian user `postgres` runs it.
"""

from __future__ import annotations

import argparse
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

START_LIMIT_S = 60
USER = "engineworks"
DATABASES = {
    "PREFECT_API_DATABASE_CONNECTION_URL": ("postgresql+asyncpg", "prefect"),
    "MLFLOW_TRACKING_URI": ("postgresql+psycopg2", "mlflow"),
}
SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "max_connections": "200",  # 8 workers with MLflow's pool of 5 + 10 each, and Prefect's server
}


def find_program(name: str) -> str | None:
    """PostgreSQL's own program: on the path, or where Debian has it; None where it is not installed."""
    places = sorted(map(str, Path("/usr/lib/postgresql").glob(f"*/bin/{name}")), reverse=True)
    return shutil.which(name) or next(iter(places), None)


def program(name: str) -> str:
    """The same, for one that must be there."""
    found = find_program(name)
    if found is None:
        sys.exit(f"{name} is not installed; apt-get install postgresql")
    return found


class Cluster:
    """A PostgreSQL cluster in a folder; `start`, `urls`, `stop`."""

    def __init__(self, folder: Path, port: int | None = None) -> None:
        self.folder = folder.resolve()
        self.port = port or _free_port()
        self._user = pwd.getpwnam("postgres") if os.geteuid() == 0 else None
        self._password_file = self.folder / "password"

    def start(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        if self._user is not None:
            os.chown(self.folder, self._user.pw_uid, self._user.pw_gid)
        if not (self.folder / "cluster" / "PG_VERSION").exists():
            self._make()
        options = " ".join(f"-c {name}='{value}'" for name, value in SETTINGS.items())
        arguments = [
            "-l",
            str(self.folder / "log"),
            "-o",
            f"-p {self.port} {options}",
            "-w",
            "-t",
            str(START_LIMIT_S),
            "start",
        ]
        self._run("pg_ctl", "-D", str(self.folder / "cluster"), *arguments)
        for _, database in DATABASES.values():
            if not self.query(f"SELECT 1 FROM pg_database WHERE datname = '{database}'"):
                self.query(f"CREATE DATABASE {database}")

    def stop(self, mode: str = "fast") -> None:
        self._run("pg_ctl", "-D", str(self.folder / "cluster"), "-m", mode, "-w", "stop")

    def urls(self) -> dict[str, str]:
        password = self._password_file.read_text(encoding="utf-8")
        return {
            name: f"{scheme}://{USER}:{password}@127.0.0.1:{self.port}/{database}"
            for name, (scheme, database) in DATABASES.items()
        }

    def query(self, sql: str, database: str = "postgres") -> str:
        """What psql prints for one statement, without decoration."""
        password = {"PGPASSWORD": self._password_file.read_text(encoding="utf-8")}
        arguments = ["-h", "127.0.0.1", "-p", str(self.port), "-U", USER, "-d", database, "-X", "-A", "-t", "-c", sql]
        done = subprocess.run(
            [program("psql"), *arguments], env=os.environ | password, capture_output=True, text=True, check=False
        )
        if done.returncode:
            sys.exit(f"psql: {done.stderr.strip()}")
        return done.stdout.strip()

    def _make(self) -> None:
        self._password_file.write_text(secrets.token_hex(16), encoding="utf-8")
        self._password_file.chmod(0o600)
        if self._user is not None:
            os.chown(self._password_file, self._user.pw_uid, self._user.pw_gid)
        arguments = ["-U", USER, f"--pwfile={self._password_file}", "-A", "scram-sha-256", "-E", "UTF8", "--locale=C"]
        self._run("initdb", "-D", str(self.folder / "cluster"), *arguments)

    def _run(self, name: str, *arguments: str) -> None:
        """Run one of its programs as the user that owns the cluster. Its output goes nowhere: a server that pg_ctl
        started would keep a pipe open."""
        as_user: dict[str, Any] = {}
        if self._user:
            as_user = {"user": self._user.pw_uid, "group": self._user.pw_gid, "extra_groups": []}
        with (self.folder / "commands.log").open("a+") as log:
            done = subprocess.run(
                [program(name), *arguments],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.folder, check=False,
                **as_user,
            )  # fmt: skip
            if done.returncode:
                log.seek(0)
                sys.exit(f"{name} failed; read {log.name}:\n{log.read()[-2000:]}")


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def main() -> None:
    parser = argparse.ArgumentParser(description="PostgreSQL for Prefect and MLflow on loopback")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--port", type=int)
    arguments = parser.parse_args()
    cluster = Cluster(arguments.folder, arguments.port)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    cluster.start()
    try:
        for name, value in cluster.urls().items():
            print(f"export {name}='{value}'", flush=True)
        print("# Ctrl-C stops it", flush=True)
        sys.stdin.read()
    except KeyboardInterrupt:
        pass
    finally:
        cluster.stop()


if __name__ == "__main__":
    main()
