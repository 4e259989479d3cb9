"""What loading a served model costs."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from engineworks.package.python_model import CACHE_PARAMETER, NO_CACHE
from engineworks.serving.answers import Question
from engineworks.serving.client import Client


def cold_starts(
    client: Client, model: str, question: Question, config: Mapping[str, Any], cache: str
) -> dict[str, Any]:
    """Load the model in four ways; returns seconds from the load's start to the first right answer of each.

    plain: with the kernels of the package, if it has some. cache: an empty folder for the engine's kernels; an untimed
    load fills it.
    """

    def cached(place: str) -> dict[str, Any]:
        return {**config, "parameters": {**config.get("parameters", {}), CACHE_PARAMETER: {"string_value": place}}}

    bare = {k: v for k, v in config.items() if k != "model_warmup"}
    ways: Sequence[tuple[str, Mapping[str, Any]]] = (
        ("plain", config), ("without warm-up", bare), ("without kernels", cached(NO_CACHE)), ("", cached(cache)),
        ("filled cache", cached(cache)),
    )  # fmt: skip
    found = {}
    for name, way in ways:
        client.unload(model)
        start = time.perf_counter()
        ready = client.load(model, way)
        client.infer(model, question.feeds)
        if name:
            found[name] = {"ready_s": ready, "first_answer_s": time.perf_counter() - start}
    client.unload(model)
    client.load(model)
    return found
