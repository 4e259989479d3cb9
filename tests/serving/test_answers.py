"""Served answers against the engine's own, over a server in this process."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from serving.fake_kserve import FakeServer, serve

from engineworks.serving.answers import Question, ask, ask_at_once, refusals, row_error
from engineworks.serving.client import Client
from engineworks.tensors import TensorSpec

SPEC = TensorSpec("x", "float32", ("batch", 3))


def questions(count: int = 5) -> list[Question]:
    feeds = [np.random.default_rng(n).normal(0, 1, (n + 1, 3)).astype(np.float32) for n in range(count)]
    return [Question({"x": x}, {"y": 2 * x}) for x in feeds]


def double(feeds: Mapping[str, Any]) -> Mapping[str, Any]:
    if list(feeds) != ["x"] or feeds["x"].ndim != 2 or feeds["x"].shape[1] != 3 or len(feeds["x"]) > 8:
        raise ValueError("unexpected shape")
    return {"y": 2 * feeds["x"]}


def test_equal_answers_are_counted_bit_for_bit() -> None:
    with serve(FakeServer({"net": double})) as address:
        with Client(address, "grpc") as client:
            found = ask(client, "net", questions())
        assert (found.requests, found.equal, found.worst, found.errors) == (5, 5, {"y": 0.0}, [])
        assert ask_at_once(address, "grpc", "net", questions(), 3).equal == 15


def test_answers_that_are_wrong_empty_or_missing_are_found() -> None:
    wrong = FakeServer(
        {"close": lambda f: {"y": 2.001 * f["x"]}, "empty": lambda f: {"y": f["x"][:0]}, "none": lambda _: {}}
    )
    with serve(wrong) as address, Client(address, "grpc") as client:
        close = ask(client, "close", questions())
        assert (close.equal, close.worst["y"]) == (0, pytest.approx(5e-4, rel=0.01))
        assert ask(client, "empty", questions()).worst == {"y": float("inf")}
        assert ask(client, "none", questions()).worst == {"y": float("inf")}


def test_requests_that_must_be_refused_are_and_the_next_is_answered() -> None:
    good = FakeServer({"net": double, "lax": lambda f: {"y": 2 * next(iter(f.values()))}})
    with serve(good) as address, Client(address, "grpc") as client:
        strict = {r["what"]: r for r in refusals(client, "net", questions()[0], [SPEC], 8)}
        assert {"rank", "unknown input", "length", "batch"} <= {w for w, r in strict.items() if r["refused"]}
        assert all(r["right_after"] for r in strict.values())
        lax = {r["what"]: r["refused"] for r in refusals(client, "lax", questions()[0], [SPEC], 8)}
        assert not lax["batch"]


@pytest.mark.parametrize(
    ("got", "wanted", "error"),
    [
        (np.array([[1.0, 0.0]]), np.array([[1.0, 0.0]]), 0.0),
        (np.array([[0.0, 2.0], [1.0, 1.0]]), np.array([[0.0, 4.0], [1.0, 1.0]]), 0.5),
        (np.zeros((1, 2)), np.zeros((2, 1)), float("inf")),
        (np.zeros(1, np.float32), np.zeros(1), float("inf")),
        (np.array([np.nan]), np.array([1.0]), float("inf")),
        (np.array([np.nan, 1]), np.array([np.nan, 1]), 0.0),
        (np.zeros((0, 3)), np.zeros((0, 3)), 0.0),
        (np.array(3), np.array(3), 0.0),
    ],
)
def test_row_error(got: Any, wanted: Any, error: float) -> None:
    assert row_error(got, wanted) == error
