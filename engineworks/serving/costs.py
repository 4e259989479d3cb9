"""What serving costs: latencies of a served model, of the same engine alone, and of a model that does nothing."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from engineworks.engines.backends.base import Session
from engineworks.serving.answers import Question
from engineworks.serving.client import Client

ROUNDS, BLOCK, WARM = 200, 20, 5


def serving_cost(client: Client, model: str, identity: str, session: Session, question: Question) -> dict[str, Any]:
    """Ask both models and run the engine alone with its copies, in alternating blocks; returns medians in ms.

    The engine's threads spin for some ms after a run, so each block begins with untimed runs.

    "ratio": what the served engine costs over its own time, relative to what the identity model costs.
    """
    inputs = client.inputs(question.feeds)
    times: dict[str, list[float]] = {model: [], identity: [], "engine": []}
    for _ in range(ROUNDS // BLOCK):
        for name in (model, identity):
            for number in range(WARM + BLOCK):
                start = time.perf_counter()
                client.answer(name, inputs)
                if number >= WARM:
                    times[name].append(1000 * (time.perf_counter() - start))
        session.time_runs(question.feeds, WARM, copies=True)
        times["engine"] += session.time_runs(question.feeds, BLOCK, copies=True).host_ms
    served, alone, own = (median(samples) for samples in times.values())
    return {
        "served_ms": served, "identity_ms": alone, "engine_ms": own,
        "ratio": (served - own) / alone if alone else None, "rounds": ROUNDS,
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
