"""A remote store for tests: files of a folder over HTTP, by a server process that can be killed or stopped, and its
fsspec file system. Run as a program: python remote_files.py FOLDER PORT."""

from __future__ import annotations

import http.client
import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from fsspec.spec import AbstractFileSystem


class Files(AbstractFileSystem):  # type: ignore[misc]
    """`httpfiles://HOST:PORT/path`."""

    protocol = "httpfiles"
    cachable = False

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return path.removeprefix("httpfiles://").rstrip("/")

    def _ask(self, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        place, _, name = self._strip_protocol(path).partition("/")
        connection = http.client.HTTPConnection(place)
        try:
            connection.request(method, f"/{name}", body)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def exists(self, path: str, **_: Any) -> bool:
        return self._ask("GET", path)[0] == 200

    def find(self, path: str, **_: Any) -> list[str]:
        place = self._strip_protocol(path).partition("/")[0]
        names: list[str] = json.loads(self._ask("LIST", path)[1])
        return [f"{place}/{name}" for name in names]

    def get_file(self, rpath: str, lpath: str, **_: Any) -> None:
        status, data = self._ask("GET", rpath)
        if status != 200:
            raise FileNotFoundError(rpath)
        Path(lpath).write_bytes(data)

    def put_file(self, lpath: str, rpath: str, **_: Any) -> None:
        self._ask("PUT", rpath, Path(lpath).read_bytes())

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        pass


class Handler(BaseHTTPRequestHandler):
    root = Path()

    def _answer(self, status: int, data: bytes = b"") -> None:
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
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self.file.write_bytes(data)
        self._answer(200)

    def log_message(self, *_: object) -> None:
        pass


if __name__ == "__main__":
    Handler.root = Path(sys.argv[1])
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[2])), Handler).serve_forever()
