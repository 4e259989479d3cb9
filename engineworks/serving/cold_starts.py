"""What loading a served model costs."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from engineworks.serving.answers import Question
from engineworks.serving.client import Client


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
