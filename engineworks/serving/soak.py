"""Loads a model in every way, many times, and swaps it under traffic: what that costs, what is left behind, and what is
lost."""

from __future__ import annotations

import contextlib
import shutil
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from engineworks.errors import RunError
from engineworks.host.nvml import used_mib
from engineworks.package.python_model import CACHE_PARAMETER, NO_CACHE
from engineworks.serving.answers import Answers, Question, ask, joined, row_error
from engineworks.serving.client import Client
from engineworks.serving.server import SHARED_MEMORY, StartedServer

Reading = dict[str, float]


def reload_model(
    client: Client, server: StartedServer, model: str, question: Question, times: int, echo: Callable[[str], None]
) -> dict[str, Any]:
    """Load, ask, unload, `times` times; returns a reading after each unload, and what was answered."""
    readings, answers, seconds = list[Reading](), list[Answers](), list[float]()
    for number in range(times):
        seconds.append(client.load(model))
        answers.append(ask(client, model, [question]))
        client.unload(model)
        readings.append(reading(server))
        if (number + 1) % 25 == 0:
            echo(f"{number + 1} of {times} reloads")
    return {"readings": readings, "answers": joined(answers).to_json(), "load_s": seconds}


def reading(server: StartedServer) -> Reading:
    """Return what the server holds now: resident KiB, open files, threads, shared memory in KiB, GPU memory in KiB."""
    process = Path("/proc") / str(server.pid)
    status = dict(
        line.split(":", 1) for line in (process / "status").read_text(encoding="ascii", errors="replace").splitlines()
    )
    shared = [file.stat().st_size for file in SHARED_MEMORY.glob(f"{server.name}*") if file.is_file()]
    gpu = used_mib()
    return {
        "rss_kib": float(status["RssAnon"].split()[0]),
        "files": float(len(list((process / "fd").iterdir()))),
        "threads": float(status["Threads"]),
        "shared_kib": sum(shared) / 1024,
        **({"gpu_kib": 1024 * gpu} if gpu is not None else {}),
    }


def swap_under_traffic(
    server: StartedServer, repository: Path, model: str, versions: Sequence[Path], asked: Sequence[Sequence[Question]],
    times: int,
) -> dict[str, Any]:  # fmt: skip
    """Exchange the model's folder and reload it, `times` times, while two clients ask.

    versions: folders of the model to take in turn; asked: the questions of each, with equal feeds. Every answer must be
    that of one version: `lost` counts requests without an answer, `mixed` answers that are of no version.
    """
    stop, lock = threading.Event(), threading.Lock()
    counts = {"requests": 0, "lost": 0, "mixed": 0}
    first_error: list[str] = []

    def work() -> None:
        with Client(server.addresses.grpc, "grpc") as client:
            index = 0
            while not stop.is_set():
                candidates = [questions[index % len(questions)] for questions in asked]
                index += 1
                lost, mixed = _one(client, model, candidates, first_error)
                with lock:
                    counts["requests"] += 1
                    counts["lost"] += lost
                    counts["mixed"] += mixed

    threads = [threading.Thread(target=work) for _ in range(2)]
    with Client(server.addresses.grpc, "grpc") as client:
        client.load(model)
        for thread in threads:
            thread.start()
        try:
            for number in range(times):
                _exchange(repository / model, versions[(number + 1) % len(versions)])
                client.load(model)
        finally:
            stop.set()
            for thread in threads:
                thread.join()
    return {"swaps": times, **counts, "first_error": first_error[0] if first_error else ""}


def _one(client: Client, model: str, candidates: Sequence[Question], first_error: list[str]) -> tuple[int, int]:
    try:
        got = client.infer(model, candidates[0].feeds)
    except RunError as error:
        first_error.append(error.message)
        return 1, 0
    fits = [max(row_error(got[n], a) for n, a in c.outputs.items()) <= SAME for c in candidates]
    return 0, int(not any(fits))


SAME = 1e-3
"""Largest relative error of a row at which an answer is a version's: batches of other requests change the last bits."""


def _exchange(place: Path, version: Path) -> None:
    """Put another version in the model's place. Triton looks at it only when it is asked to load."""
    temporary = place.with_name(f".{place.name}.next")
    shutil.rmtree(temporary, ignore_errors=True)
    shutil.copytree(version, temporary)
    old = place.with_name(f".{place.name}.old")
    with contextlib.suppress(FileNotFoundError):
        place.rename(old)
    temporary.rename(place)
    shutil.rmtree(old, ignore_errors=True)
    (place / "config.pbtxt").touch()


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
