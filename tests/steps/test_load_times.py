"""Loads with and without a cache are told apart, and every session is closed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engineworks.errors import RunError
from engineworks.steps.measure import measure_loads


class FakeSession:
    open = 0

    def __init__(self, *, fails: bool) -> None:
        self._fails = fails
        FakeSession.open += 1

    def run(self, feeds: Any) -> Any:
        if self._fails:
            raise RunError("out of memory")
        return {}

    def close(self) -> None:
        FakeSession.open -= 1


def test_the_cache_is_filled_before_it_is_measured(tmp_path: Path) -> None:
    asked: list[Path | None] = []

    def load(cache: Path | None) -> Any:
        asked.append(cache)
        return FakeSession(fails=False)

    found = measure_loads(load, {"x": np.ones(1)}, tmp_path)
    assert asked == [None, tmp_path, tmp_path]
    assert set(found) == {"without_cache", "with_cache"}
    assert all(v >= 0 for values in found.values() for v in values.values())
    assert FakeSession.open == 0


def test_a_run_that_fails_leaves_no_session_open(tmp_path: Path) -> None:
    with pytest.raises(RunError):
        measure_loads(lambda cache: FakeSession(fails=True), {}, tmp_path)  # type: ignore[arg-type,return-value]
    assert FakeSession.open == 0
