"""Several models on one server: the memory of each, and what each costs the others' latency."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from engineworks.errors import RunError
from engineworks.measure.statistics import quantile
from engineworks.serving.answers import Question
from engineworks.serving.client import Client

NO_TEXT = ": <EMPTY MESSAGE>"
"""What Triton's Python backend adds to an exception without text."""

OUT_OF_MEMORY = ("out of memory", "outofmemory", "bad_alloc", "memoryerror", "cannot allocate memory")
"""Words of CUDA, TensorRT, C++, Python and the C library, in lower case."""

WARM = 5
"""Requests before those that are timed."""


def serve_together(
    client: Client, address: str, models: Mapping[str, Sequence[Question]], memory_mib: Callable[[], float],
    seconds: float,
) -> dict[str, Any]:  # fmt: skip
    """Load and ask each model alone, then all at once; one client asks each, one request after the other.

    memory_mib: the memory of the server, or of its GPU. Returns the memory that each load adds, the sum, and by model
    the latencies alone and beside the others. Raises `RunError`, in one sentence where the memory does not suffice.
    """
    alone: dict[str, Any] = {}
    for model, questions in models.items():
        client.load(model)
        alone[model] = _asked({model: questions}, address, seconds)[model]
        client.unload(model)
    before = memory_mib()
    memory: dict[str, float] = {}
    for model in models:
        _load_beside(client, model, list(memory))
        memory[model] = memory_mib() - before - sum(memory.values())
    beside = _asked(models, address, seconds)
    sides = {model: {"memory_mib": memory[model], "alone": alone[model], "beside": beside[model]} for model in models}
    return {"memory_mib": memory_mib() - before, "models": sides}


def _load_beside(client: Client, model: str, others: Sequence[str]) -> None:
    try:
        client.load(model)
    except RunError as error:
        if others and any(words in error.message.lower() for words in OUT_OF_MEMORY):
            beside = ", ".join(f"'{other}'" for other in others)
            reason = error.message.partition(": ")[2].removesuffix(NO_TEXT)
            message = f"'{model}' does not fit into the memory beside {beside}: {reason}"
            raise RunError(message, hint="serve fewer models, or smaller ones", log=error.log) from None
        raise


def _asked(models: Mapping[str, Sequence[Question]], address: str, seconds: float) -> dict[str, Any]:
    """Ask all models at the same time; returns requests, errors and quantiles in ms of each."""
    with ThreadPoolExecutor(len(models)) as pool:
        asked = {m: pool.submit(_one, m, questions, address, seconds) for m, questions in models.items()}
    return {model: future.result() for model, future in asked.items()}


def _one(model: str, questions: Sequence[Question], address: str, seconds: float) -> dict[str, Any]:
    times, errors = list[float](), list[str]()
    with Client(address, "grpc") as client:
        inputs = [client.inputs(question.feeds) for question in questions]
        number, end = -WARM, 0.0
        while number < 1 or time.monotonic() < end:
            start = time.perf_counter()
            end = end if number else time.monotonic() + seconds
            try:
                client.answer(model, inputs[number % len(inputs)])
            except RunError as error:
                errors.append(error.message)
                break
            if number >= 0:
                times.append(1000 * (time.perf_counter() - start))
            number += 1
    times.sort()
    quantiles = {f"p{q}_ms": quantile(times, q / 100) if times else None for q in (50, 99)}
    return {"requests": len(times), "error": errors[0] if errors else "", **quantiles}
