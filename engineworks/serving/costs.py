"""What serving costs: latencies of a served model, of the same engine alone, and of a model that does nothing."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from engineworks.engines.backends.base import Session
from engineworks.measure.statistics import quantile_interval
from engineworks.serving.answers import Question
from engineworks.serving.client import Client

ROUNDS, BLOCK, WARM = 60, 5, 3
"""Blocks of each of the three, timed runs of a block, and untimed ones before them."""


def serving_cost(client: Client, model: str, identity: str, session: Session, question: Question) -> dict[str, Any]:
    """Ask both models and run the engine alone with its copies, in alternating blocks; returns medians in ms.

    A block takes some ms, so other programs disturb the three of a round alike; the order changes from round to round.
    The engine's threads spin for some ms after a run, so each block begins with untimed runs.

    "ratio": the median over the rounds of what the served engine costs over its own time, relative to what the identity
    model costs. "low", "high": its 95% interval.
    """
    inputs = client.inputs(question.feeds)

    def asked(name: str) -> list[float]:
        times = []
        for _ in range(WARM + BLOCK):
            start = time.perf_counter()
            client.answer(name, inputs)
            times.append(1000 * (time.perf_counter() - start))
        return times[WARM:]

    def alone() -> Sequence[float]:
        session.time_runs(question.feeds, WARM, copies=True)
        return session.time_runs(question.feeds, BLOCK, copies=True).host_ms

    work = {"served": lambda: asked(model), "identity": lambda: asked(identity), "engine": alone}
    rounds = [
        {name: median(work[name]()) for name in (work if number % 2 else reversed(work))} for number in range(ROUNDS)
    ]
    ratios = sorted((one["served"] - one["engine"]) / one["identity"] for one in rounds)
    interval = quantile_interval(ratios, 0.5)
    return {
        **{f"{name}_ms": median(one[name] for one in rounds) for name in work},
        "ratio": median(ratios), "low": interval.low if interval else None, "high": interval.high if interval else None,
        "rounds": ROUNDS,
    }  # fmt: skip


def cold_starts(
    client: Client, model: str, question: Question, config: Mapping[str, Any], cache: str
) -> dict[str, Any]:
    """Load the model in three ways; returns seconds from the load's start to the first right answer of each.

    cache: an empty folder for the engine's compiled kernels: filled by the first load with it, used by the second.
    """
    parameters = {**config.get("parameters", {}), "runtime_cache": {"string_value": cache}}
    bare = {k: v for k, v in config.items() if k != "model_warmup"}
    ways: Sequence[tuple[str, Mapping[str, Any]]] = (
        ("plain", config), ("without warm-up", bare), ("empty cache", {**config, "parameters": parameters}),
        ("filled cache", {**config, "parameters": parameters}),
    )  # fmt: skip
    found = {}
    for name, way in ways:
        client.unload(model)
        start = time.perf_counter()
        ready = client.load(model, way)
        client.infer(model, question.feeds)
        found[name] = {"ready_s": ready, "first_answer_s": time.perf_counter() - start}
    client.unload(model)
    client.load(model)
    return found
