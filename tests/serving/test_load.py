"""LoadGen's summary, and the search of a rate."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from serving.fake_kserve import FakeServer, serve

from engineworks.serving import batching
from engineworks.serving.answers import Question
from engineworks.serving.batching import Batching, holds_limit, largest_rate, run_all_sizes, settings
from engineworks.serving.load import Offer, loadgen_result

SUMMARY = """================================================
MLPerf Results Summary
================================================
Scenario : Server
Completed samples per second    : 99.10
Result is : INVALID
  Performance constraints satisfied : Yes
  Min duration satisfied : Yes
  Min queries satisfied : Yes
  Early stopping satisfied: NO
Early Stopping Result:
 * Only processed 300 queries.
"""


def test_loadgens_own_result_is_read_with_its_reason() -> None:
    found = loadgen_result(SUMMARY)
    assert (found["result"], found["early_stopping"]) == ("INVALID", "Only processed 300 queries.")
    assert loadgen_result("")["result"] == "none"


@pytest.mark.parametrize("true_rate", [3.0, 90.0, 1000.0])
def test_the_search_comes_within_a_tenth_of_the_largest_rate(monkeypatch: pytest.MonkeyPatch, true_rate: float) -> None:
    def offered(address: str, model: str, asked: Any, offer: Offer) -> dict[str, Any]:
        p99 = 1.0 if offer.qps <= true_rate else 100.0
        return {
            "qps": offer.qps,
            "completed_per_s": offer.qps,
            "errors": 0,
            "latency_ms_p99": p99,
            "limit_p99_ms": 15.0,
        }

    monkeypatch.setattr(batching, "offer_load", offered)
    found = largest_rate("", "", [], Offer(50.0, 15.0, 1.0), tries=12)
    assert true_rate / 1.1 <= found["rate"] <= true_rate


def test_a_load_that_lost_requests_or_fell_behind_does_not_hold() -> None:
    good = {"qps": 10.0, "completed_per_s": 10.0, "errors": 0, "latency_ms_p99": 5.0, "limit_p99_ms": 15.0}
    assert holds_limit(good)
    for worse in ({"errors": 1}, {"completed_per_s": 5.0}, {"latency_ms_p99": 16.0}, {"latency_ms_p99": None}):
        assert not holds_limit({**good, **worse})


def test_a_sweep_tries_no_batching_and_a_setting_changes_only_what_it_names() -> None:
    tried = settings(64, delays_us=(0, 1000), instances=(1,))
    assert [b.preferred for b in tried] == [None, (), (32, 64), (), (32, 64)]
    assert [str(b) for b in tried[:4]] == [
        "no batching, 1 instance", "0 µs, 1 instance", "0 µs, [32, 64], 1 instance", "1000 µs, 1 instance",
    ]  # fmt: skip
    assert [Batching.from_json(b.to_json()) for b in tried] == tried
    config = {"name": "net", "dynamic_batching": {"x": 1}, "instance_group": [{"kind": "KIND_CPU", "count": 1}]}
    assert Batching().applied(config) == {"name": "net", "instance_group": [{"kind": "KIND_CPU", "count": 1}]}
    applied = Batching(500, (8,), 2).applied(config)
    assert applied["instance_group"][0]["count"] == 2
    assert applied["dynamic_batching"] == {"preferred_batch_size": [8], "max_queue_delay_microseconds": 500}


@pytest.mark.parametrize(("most", "ran"), [(6, {1, 2, 4}), (0, {1})])
def test_before_a_load_every_size_of_a_batch_runs_at_every_shape_of_a_query(most: int, ran: set[int]) -> None:
    """A size that the engine refuses is no failure: no query can make it."""
    seen = set[tuple[int, ...]]()

    def model(feeds: Any) -> Any:
        if len(feeds["x"]) > 4:
            raise ValueError("outside every profile")
        seen.add(feeds["x"].shape)
        return {"y": feeds["x"]}

    asked = [Question({"x": np.ones((1, n), np.float32)}, {"y": np.ones((1, n), np.float32)}) for n in (2, 3, 2)]
    with serve(FakeServer({"net": model})) as address:
        run_all_sizes(address, "net", asked, most, instances=2)
    assert seen == {(size, n) for size in ran for n in (2, 3)}
