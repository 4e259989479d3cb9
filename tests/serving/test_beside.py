"""Champion and candidate on two servers in this process."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest
from serving.fake_kserve import FakeServer, serve

from engineworks.measure.interleave import Pace, Side, interleave
from engineworks.serving.beside import Beside, ServedModel, some_of
from engineworks.serving.client import Client
from engineworks.serving.metrics import OtherWork

Model = Callable[[Mapping[str, Any]], Mapping[str, Any]]
REQUESTS = [{"x": np.full((2, 3), n, np.float32)} for n in range(1, 5)]


def model(factor: float, *, refuses: float = -1.0, width: int = 3) -> Model:
    def run(feeds: Mapping[str, Any]) -> Mapping[str, Any]:
        if feeds["x"].flat[0] == refuses:
            raise ValueError(f"{refuses:g} is refused")
        return {"y": (factor * feeds["x"])[:, :width]}

    return run


def compared(champion: Model, candidate: Model) -> dict[str, Any]:
    with ExitStack() as stack:
        clients: dict[Side, Client] = {}
        for side, one in (("champion", champion), ("candidate", candidate)):
            address = stack.enter_context(serve(FakeServer({"net": one})))
            clients[side] = stack.enter_context(Client(address, "grpc"))  # type: ignore[index]
        beside = Beside(clients, "net")
        return beside.compare(REQUESTS, {"y": 0}) | {"answered": beside.answered}


def test_equal_answers_are_counted_and_others_are_measured() -> None:
    same = compared(model(2), model(2))
    assert (same["equal"], same["torn"], same["answered"]) == (4, 0, [0, 1, 2, 3])
    other = compared(model(2), model(3))
    assert (other["equal"], other["torn"]) == (0, 0)
    assert other["outputs"]["y"]["cosine"] == pytest.approx(1)
    assert other["outputs"]["y"]["max_abs"] == 4


def test_a_request_that_both_refuse_is_no_difference_and_one_that_one_side_refuses_is() -> None:
    both = compared(model(2, refuses=1), model(2, refuses=1))
    assert (both["refused"], both["torn"], both["answered"]) == (1, 0, [1, 2, 3])
    torn = compared(model(2), model(2, refuses=2))
    assert (torn["refused"], torn["torn"], torn["answered"]) == (0, 1, [0, 2, 3])
    assert torn["first_torn"] == (
        "request 2: the candidate gave no answer: 'net' refused a request by grpc: 2 is refused"
    )


def test_another_shape_is_told() -> None:
    torn = compared(model(2), model(2, width=2))
    assert torn["torn"] == 4
    assert torn["first_torn"] == "request 1: output 'y' has shape [2, 2], the champion's [2, 3]"


def test_a_served_model_is_timed_by_passes_and_loaded_again_every_round() -> None:
    fake = FakeServer({"net": model(2)})
    with serve(fake) as address, Client(address, "grpc") as client:

        def load() -> ServedModel:
            return ServedModel(client, "net", {"evaluation": REQUESTS})

        served = load()
        assert len(served.time_runs("evaluation", 3)) == 3
        served.close()
        assert fake.loaded == []
        fake.models["other"] = fake.models["net"]
        sides: dict[Side, Callable[[], ServedModel]] = {
            "champion": load, "candidate": lambda: ServedModel(client, "other", {"evaluation": REQUESTS}),
        }  # fmt: skip
        pace = Pace(max_s=0, block_ms=0, quads=1, warmup_ms=0)
        attempt = interleave(sides, ["evaluation"], 0.05, OtherWork(), seed=1, pace=pace)
    assert len(attempt.rounds) == 1
    assert attempt.shapes["evaluation"].verdict == "inconclusive"


@pytest.mark.parametrize("count", [1, 15, 16, 1000])
def test_timed_requests_are_spread_evenly(count: int) -> None:
    requests = [{"x": np.full(1, n)} for n in range(count)]
    random.Random(1).shuffle(requests)
    chosen = some_of(requests)
    assert len(chosen) == min(16, count)
    assert chosen[0] is requests[0]
    assert len({id(c) for c in chosen}) == len(chosen)
