"""Chooses the backends that a package is made for: those that the server has."""

from __future__ import annotations

from engineworks.host.triton import InstalledServer, Server
from engineworks.package.package import CONTAINER
from engineworks.serving.client import Client


def available_backends(server: Server | None) -> tuple[str, ...]:
    """Return the server's backends that a package can use; those of NVIDIA's container without a server.

    A running server is asked. Raises `RunError` where it does not answer.
    """
    if server is None:
        return CONTAINER
    if isinstance(server, InstalledServer):
        return server.available
    with Client(server.grpc, "grpc") as client:
        client.require_loading()
        return tuple(name for name in CONTAINER if client.has_backend(name))
