"""moto's S3 over HTTP, one request at a time, so that its conditional put is atomic: `python s3_server.py [PORT]`.

Prints its port once it listens."""

from __future__ import annotations

import logging
import sys

from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

if __name__ == "__main__":
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = make_server(
        "127.0.0.1", int(sys.argv[1]) if sys.argv[1:] else 0, DomainDispatcherApplication(create_backend_app)
    )
    print(server.server_port, flush=True)
    server.serve_forever()
