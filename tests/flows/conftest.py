"""A Prefect API for the flows that tests run in their own process."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from flows.local_prefect import prefect_api


@pytest.fixture(scope="package")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One server for all flows of this folder. The environment leads to it meanwhile, and is put back."""
    with prefect_api(tmp_path_factory.mktemp("prefect")) as prefect:
        prefect.wait_ready()
        yield
