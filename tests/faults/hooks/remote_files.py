"""A store in another place, for tests: files of a folder over HTTP, by a server process that can be killed, stopped or
made slow, and its fsspec file system. Run as a program: python remote_files.py FOLDER PORT.

`slow` beside the folder (FOLDER.slow) holds the seconds that every request takes.
"""

from __future__ import annotations

import http.client
import json
import shutil
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from fsspec.spec import AbstractFileSystem

TIMEOUT_S = 5.0


class Files(AbstractFileSystem):  # type: ignore[misc]
    """`httpfiles://HOST:PORT/path`."""

    protocol = "httpfiles"
    cachable = False

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return path.removeprefix("httpfiles://").rstrip("/")

    def _ask(self, method: str, path: str, body: bytes | None = None, **headers: str) -> bytes:
        place, _, name = self._strip_protocol(path).partition("/")
        connection = http.client.HTTPConnection(place, timeout=TIMEOUT_S)
        try:
            connection.request(method, f"/{name}", body, headers)
            answer = connection.getresponse()
            data = answer.read()
        finally:
            connection.close()
        if answer.status == 404:
            raise FileNotFoundError(path)
        if answer.status == 412:
            raise FileExistsError(path)
        return data

    def cat_file(self, path: str, **_: Any) -> bytes:
        return self._ask("GET", path)

    def get_file(self, rpath: str, lpath: str, **_: Any) -> None:
        Path(lpath).write_bytes(self._ask("GET", rpath))

    def put_file(self, lpath: str, rpath: str, **_: Any) -> None:
        self._ask("PUT", rpath, Path(lpath).read_bytes())

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **_: Any) -> None:
        self._ask("PUT", path, value, **({"If-None-Match": "*"} if mode == "create" else {}))

    def rm_file(self, path: str) -> None:
        self._ask("DELETE", path)

    def rm(self, path: str, recursive: bool = False, maxdepth: int | None = None) -> None:
        self._ask("DELETE", path)

    def find(self, path: str, **_: Any) -> dict[str, dict[str, Any]]:
        place = self._strip_protocol(path).partition("/")[0]
        return {f"{place}/{name}": {} for name in json.loads(self._ask("LIST", path))}

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        pass


class Handler(BaseHTTPRequestHandler):
    root = Path()
    lock = threading.Lock()

    def _answer(self, status: int, data: bytes = b"") -> None:
        slow = self.root.with_name(f"{self.root.name}.slow")
        if slow.exists():
            time.sleep(float(slow.read_text(encoding="ascii")))
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    @property
    def file(self) -> Path:
        return self.root / self.path.lstrip("/")

    def do_GET(self) -> None:
        found = self.file.is_file()
        self._answer(200 if found else 404, self.file.read_bytes() if found else b"")

    def do_LIST(self) -> None:
        names = [f.relative_to(self.root).as_posix() for f in self.file.rglob("*") if f.is_file()]
        self._answer(200, json.dumps(names).encode())

    def do_PUT(self) -> None:
        data = self.rfile.read(int(self.headers["Content-Length"]))
        with self.lock:
            exists = self.headers["If-None-Match"] == "*" and self.file.exists()
            if not exists:
                self.file.parent.mkdir(parents=True, exist_ok=True)
                self.file.write_bytes(data)
        self._answer(412 if exists else 200)

    def do_DELETE(self) -> None:
        if self.file.is_dir():
            shutil.rmtree(self.file)
            self._answer(200)
        else:
            found = self.file.exists()
            self.file.unlink(missing_ok=True)
            self._answer(200 if found else 404)

    def log_message(self, *_: object) -> None:
        pass


if __name__ == "__main__":
    Handler.root = Path(sys.argv[1])
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[2])), Handler).serve_forever()
