"""Settings of the dynamic batcher, measured: delay, preferred sizes and instances against the rate within a p99."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np

from engineworks.package.python_model import padded_sizes
from engineworks.serving.answers import Question, ask_at_once
from engineworks.serving.client import Client
from engineworks.serving.load import Offer, offer_load


@dataclass(frozen=True)
class Batching:
    """Settings of the dynamic batcher; none of its own where `preferred` is None. delay_us: microseconds."""

    delay_us: int = 0
    preferred: tuple[int, ...] | None = None
    instances: int = 1

    def __str__(self) -> str:
        """'no batching, 1 instance', '500 µs, [32, 64], 2 instances'."""
        sizes = f"{self.delay_us} µs" + (f", {list(self.preferred)}" if self.preferred else "")
        count = f"{self.instances} instance" + ("s" if self.instances != 1 else "")
        return f"{'no batching' if self.preferred is None else sizes}, {count}"

    def applied(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Return a model's configuration with these settings."""
        changed = {k: v for k, v in config.items() if k != "dynamic_batching"}
        changed["instance_group"] = [{**group, "count": self.instances} for group in config["instance_group"]]
        if self.preferred is not None:
            changed["dynamic_batching"] = {
                "preferred_batch_size": list(self.preferred), "max_queue_delay_microseconds": self.delay_us,
            }  # fmt: skip
        return changed

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Batching:
        """Read the settings of a point of a sweep."""
        sizes = value["preferred"]
        return cls(value["delay_us"], None if sizes is None else tuple(sizes), value["instances"])

    def to_json(self) -> dict[str, Any]:
        return {"delay_us": self.delay_us, "preferred": self.preferred, "instances": self.instances}


def settings(most: int, delays_us: Sequence[int], instances: Sequence[int] = (1, 2)) -> list[Batching]:
    """Return what a sweep tries: no batching, and every delay with each way of preferring sizes.

    most: the largest batch. delays_us: microseconds.
    """
    sizes: tuple[tuple[int, ...], ...] = ((), (max(1, most // 2), most)) if most > 1 else ((),)
    tried = [Batching(delay, preferred, count) for delay, preferred, count in product(delays_us, sizes, instances)]
    return [Batching(instances=count) for count in instances] + tried


def largest_rate(
    address: str, model: str, asked: Sequence[Question], offer: Offer, *, tries: int = 6
) -> dict[str, Any]:
    """Search the largest rate at which the p99 stays within the limit: doubling, then halving the interval.

    offer: where the search begins; each try takes its seconds. Returns the rate (0 where none holds) and every try.
    """
    done: list[dict[str, Any]] = []
    good, bad, qps = 0.0, float("inf"), offer.qps
    for _ in range(tries):
        result = offer_load(address, model, asked, replace(offer, qps=qps))
        holds = holds_limit(result)
        done.append({**result, "holds": holds})
        if holds:
            good = max(good, qps)
        else:
            bad = min(bad, qps)
        if bad <= good or bad / max(good, 1e-9) < 1.1:
            break
        qps = 4 * good if bad == float("inf") else (good * bad) ** 0.5 if good else bad / 4
    return {"rate": good, "tries": done}


def holds_limit(result: Mapping[str, Any]) -> bool:
    """Whether a load was answered completely, in time, and about as fast as it was offered."""
    kept_up = result["completed_per_s"] >= 0.9 * result["qps"]
    return not result["errors"] and kept_up and (result["latency_ms_p99"] or float("inf")) <= result["limit_p99_ms"]


def run_all_sizes(address: str, model: str, asked: Sequence[Question], most: int, instances: int) -> None:
    """Ask for every batch size to which a GPU's batches are padded, at the shapes of the queries, untimed.

    A GPU's runtime may compile kernels in the first run of a shape; a p99 tells of a server that has run for a while.
    Sizes that no profile admits are refused, and no query can make them. most: the largest batch, 0 for none.
    """
    shapes = {tuple(a.shape for a in question.feeds.values()): question for question in asked}
    batches = [
        Question(*({n: np.repeat(a, size, axis=0) for n, a in part.items()} for part in (one.feeds, one.outputs)))
        for one in shapes.values()
        for size in padded_sizes(most)
    ]  # fmt: skip
    ask_at_once(address, "grpc", model, batches if most else list(shapes.values()), 2 * instances)


def sweep(
    client: Client, address: str, model: str, asked: Sequence[Question], offer: Offer, tried: Sequence[Batching],
    echo: Callable[[str], None], *, tries: int = 5,
) -> list[dict[str, Any]]:  # fmt: skip
    """Measure the largest rate of every setting, in one run of the server; afterwards the model has its own again."""
    config = client.config(model)
    points = []
    for batching in tried:
        client.load(model, batching.applied(config))
        run_all_sizes(address, model, asked, int(config["max_batch_size"]), batching.instances)
        found = largest_rate(address, model, asked, offer, tries=tries)
        points.append({**batching.to_json(), "rate": found["rate"], "tries": found["tries"]})
        echo(f"{batching}: {found['rate']:.0f} queries/s")
    client.load(model, config)
    return points
