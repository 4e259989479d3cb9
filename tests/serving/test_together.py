"""Several models on one server, in this process: memory, latencies, and what does not fit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from serving.fake_kserve import FakeServer, serve

from engineworks.errors import RunError
from engineworks.measure.gates.together import together_checks
from engineworks.serving.answers import Question
from engineworks.serving.client import Client
from engineworks.serving.together import serve_together

ASKED = [Question({"x": np.ones((1, 3), np.float32)}, {})]


def double(feeds: Mapping[str, Any]) -> Mapping[str, Any]:
    return {"y": 2 * feeds["x"]}


def served(fake: FakeServer) -> dict[str, Any]:
    sizes = {"a": 300.0, "b": 50.0}
    with serve(fake) as address, Client(address, "grpc") as client:
        return serve_together(
            client, address, {"a": ASKED, "b": ASKED}, lambda: 20 + sum(sizes[name] for name in fake.loaded), 0.02
        )


def test_every_model_is_asked_alone_and_beside_the_others_and_its_memory_is_what_its_load_adds() -> None:
    fake = FakeServer({"a": double, "b": double})
    found = served(fake)
    assert fake.loaded == ["a", "b"]
    assert found["memory_mib"] == 350
    assert [found["models"][name]["memory_mib"] for name in "ab"] == [300, 50]
    for one in found["models"].values():
        for way in ("alone", "beside"):
            assert one[way]["requests"] > 0
            assert one[way]["error"] == ""


class Full(FakeServer):
    """A server whose memory takes one model."""

    def RepositoryModelLoad(self, request: Any, context: Any) -> Any:
        self.broken = {"b": "load failed for model 'b': version 1 is at UNAVAILABLE state: Internal: std::bad_alloc;"}
        if not self.loaded:
            self.broken = {}
        return super().RepositoryModelLoad(request, context)


def test_a_model_that_does_not_fit_is_one_sentence() -> None:
    with pytest.raises(RunError) as error:
        served(Full({"a": double, "b": double}))
    assert error.value.message == "'b' does not fit into the memory beside 'a': std::bad_alloc"


WAY = {"requests": 600, "error": "", "p50_ms": 1.0, "p99_ms": 9.0}
REPORT: dict[str, Any] = {
    "memory_mib": 350.0, "place": "the host's memory",
    "models": {"a": {"memory_mib": 300.0, "alone": WAY, "beside": WAY},
               "b": {"memory_mib": 50.0, "alone": WAY, "beside": WAY}},
}  # fmt: skip


def verdicts(budget: float | None, limit: float | None, **beside: Any) -> list[str]:
    report = {**REPORT, "models": {"a": {**REPORT["models"]["a"], "beside": {**WAY, **beside}}}}
    return [check.verdict for check in together_checks(report, budget, {"a": limit})]


def test_sum_and_latencies_are_compared_with_their_limits() -> None:
    assert verdicts(350, 9) == verdicts(None, None) == ["pass", "pass"]
    assert verdicts(349, 9) == ["fail", "pass"]
    assert verdicts(350, 8.9) == ["pass", "fail"]
    assert verdicts(350, 9, requests=562) == ["pass", "inconclusive"]
    assert verdicts(350, None, error="gone") == ["pass", "fail"]
    (memory, *_) = together_checks(REPORT, 400, {"a": None, "b": None})
    assert memory.message == "All models take 350 MiB of the host's memory (a 300, b 50), limit 400."
