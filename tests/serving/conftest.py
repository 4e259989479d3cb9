"""A server that `make triton` installed, or that ENGINEWORKS_TRITON names."""

from __future__ import annotations

import pytest

from engineworks.host.triton import NO_SERVER, InstalledServer, find_server


@pytest.fixture(scope="session")
def triton() -> InstalledServer:
    server = find_server()
    if not isinstance(server, InstalledServer):
        pytest.fail(NO_SERVER)
    return server
