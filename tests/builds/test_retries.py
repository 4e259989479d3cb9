"""Steps are tried again by the kind of their failure."""

from __future__ import annotations

import pytest

from engineworks.builds.retries import DELAYS_S, is_worth_retrying
from engineworks.errors import (
    BuildError,
    ChildDefect,
    Interrupted,
    ModelError,
    RunError,
    StoreError,
    TargetError,
    TimeLimitError,
)
from tasks.run_steps import STEP_TASKS


@pytest.mark.parametrize(
    "error",
    [
        StoreError("the store s3://x does not answer: timeout"),
        BuildError("a/b/c/build crashed", crash="outside"),
        RunError("a/b/c/compare crashed", crash="outside"),
        ConnectionResetError(),
    ],
)
def test_what_came_from_outside_is_tried_again(error: Exception) -> None:
    assert is_worth_retrying(error)


@pytest.mark.parametrize(
    "error",
    [
        ModelError("no such input"),
        TargetError("unknown target"),
        BuildError("TensorRT: no implementation for node"),
        BuildError("a/b/c/build crashed", crash="library"),
        BuildError("a builder's own words: crashed with SIGKILL after 2.0 s"),
        TimeLimitError("a/b/c/build was stopped after 7200 s"),
        ChildDefect("a/b/c/build raised KeyError: 'x'"),
        Interrupted("stopped"),
        KeyboardInterrupt(),
        ValueError("anything else"),
    ],
)
def test_what_would_be_the_same_again_is_not(error: BaseException) -> None:
    assert not is_worth_retrying(error)


def test_every_step_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    from tasks.run_steps import may_retry

    for one in STEP_TASKS.values():
        assert one.retries == len(DELAYS_S)
        assert one.retry_condition_fn is may_retry
