"""The candidate's package beside the champion's, on two servers: the same requests, answers and latencies compared.

A command's step: it is in no build. Latencies are compared as engines are (`measure.interleave`): a round loads both
models again, and a difference must be confirmed by a second pair of servers.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from engineworks.engines.backends._feeds import narrowed_feeds
from engineworks.engines.passport import read_passport
from engineworks.engines.signing import Trust
from engineworks.errors import RunError
from engineworks.fingerprint import digest_of
from engineworks.host.lazy import Arrays
from engineworks.host.triton import NO_SERVER, InstalledServer, find_server
from engineworks.measure.interleave import SIDES, Pace, Side, interleave
from engineworks.package.package import PackagedEngine, write_models
from engineworks.plan.kinds import SHADOW_FILE
from engineworks.recipe.batch import output_axes
from engineworks.recipe.package_settings import PackageSettings
from engineworks.recipe.samples import SampleFile, samples_from_json
from engineworks.serving.beside import Beside, ServedModel, some_of
from engineworks.serving.client import Client
from engineworks.serving.metrics import OtherWork
from engineworks.serving.recorded import read_requests
from engineworks.serving.server import StartedServer, available_backends, started
from engineworks.steps.compare_champion import compare_engines
from engineworks.steps.job import StepJob
from engineworks.steps.task_metric import TaskComparison

EVALUATION, RECORDED = "evaluation", "recorded"


def run(job: StepJob) -> None:
    """Write `shadow.json`: `answers` by group of requests (`Beside.compare`), `metric` of both sides, and `latency` as
    in a champion comparison."""
    engines = {side: _engine(job, side) for side in SIDES}
    digests = {side: engine.passport.sha256 for side, engine in engines.items()}
    report: dict[str, Any] = {"champion": job.params["champion"], "identical": len(set(digests.values())) == 1}
    if not report["identical"]:
        report |= _compare(job, engines, int(digest_of(sorted(digests.values()))[:8], 16))
    job.write_json(SHADOW_FILE, report)


def _engine(job: StepJob, side: Side) -> PackagedEngine:
    passport = read_passport(Path(job.unkeyed[f"{side} passport"]), Trust())
    return PackagedEngine(Path(job.unkeyed[f"{side} folder"]), passport)


def _compare(job: StepJob, engines: Mapping[Side, PackagedEngine], seed: int) -> dict[str, Any]:
    server = find_server()
    if not isinstance(server, InstalledServer):
        raise RunError("a champion's shadow needs a server that can be started twice" if server else NO_SERVER)
    recorded = read_requests(Path(job.unkeyed["requests"])) if job.unkeyed.get("requests") else []
    samples = samples_from_json(job.paths("evaluation"), {**job.params["samples"], "labels": job.params["labels"]})
    settings = PackageSettings.from_json(job.params["package"])
    with tempfile.TemporaryDirectory(prefix="engineworks-shadow-") as folder:
        repositories = {side: Path(folder, side) for side in SIDES}
        names = {
            write_models(settings, samples, [engines[side]], repositories[side], available_backends(server), job.echo)[
                0
            ].name
            for side in SIDES
        }
        (model,) = names
        pair = partial(_servers, server, repositories)
        with pair() as running:
            answers, metric, groups = _answers(job, running, model, samples, recorded, engines["candidate"])
        measure = partial(_attempt, job, pair, model, groups)
        return {"answers": answers, "metric": metric, "latency": compare_engines(measure, measure, seed, job.echo)}


@contextlib.contextmanager
def _servers(
    server: InstalledServer, repositories: Mapping[Side, Path]
) -> Iterator[Mapping[Side, tuple[StartedServer, Client]]]:
    """Yield a new server for each side, and a client of it."""
    with contextlib.ExitStack() as stack:
        processes = {side: stack.enter_context(started(server, repositories[side])) for side in SIDES}
        yield {
            side: (process, stack.enter_context(Client(process.addresses.grpc, "grpc")))
            for side, process in processes.items()
        }


def _answers(
    job: StepJob, running: Mapping[Side, tuple[StartedServer, Client]], model: str, samples: SampleFile,
    recorded: Sequence[Arrays], candidate: PackagedEngine,
) -> tuple[dict[str, Any], dict[str, Any] | None, dict[str, list[Arrays]]]:  # fmt: skip
    """Return the comparison of each group of requests, the metric of both sides, and the requests to time."""
    clients = {side: client for side, (_, client) in running.items()}
    for client in clients.values():
        client.load(model)
    described = candidate.passport.facts.engine
    axes = output_axes(samples.specs, tuple(described.outputs))
    given = list(samples.batches(job.params["batches"]))
    feeds = [narrowed_feeds(described.inputs, feed) for feed in given]
    groups: dict[str, list[Arrays]] = {}
    groups[EVALUATION] = [{n: np.ascontiguousarray(a) for n, a in feed.items()} for feed in feeds]
    groups |= {RECORDED: list(recorded)} if recorded else {}
    beside, task, report, timed = Beside(clients, model), TaskComparison(job, samples, axes), dict[str, Any](), {}
    for group, requests in groups.items():

        def keep(number: int, got: Mapping[Side, Arrays], group: str = group) -> None:
            if group == EVALUATION:
                task.add(given[number], got["candidate"], got["champion"])

        report[group] = beside.compare(requests, axes, keep)
        if beside.answered:
            timed[group] = some_of([requests[number] for number in beside.answered])
        job.echo(f"{group}: {report[group]['equal']} of {len(requests)} answers equal")
    whole = not report[EVALUATION]["torn"] and not report[EVALUATION]["refused"]
    result = task.result() if whole else None
    metric = None if result is None else {
        "name": result.name, "lower_is_better": result.lower_is_better, "candidate": result.engine,
        "champion": result.reference,
    }  # fmt: skip
    return report, metric, timed


def _attempt(job: StepJob, pair: Any, model: str, groups: Mapping[str, Sequence[Arrays]], seed: int) -> dict[str, Any]:
    """Time both models on a new pair of servers."""
    with pair() as running:
        trees = OtherWork(lambda: [pid for process, _ in running.values() for pid in process.tree])
        load = {side: partial(ServedModel, client, model, groups) for side, (_, client) in running.items()}
        return interleave(
            load, list(groups), job.params["limit"], trees, seed=seed, pace=Pace(max_s=job.params["max_s"])
        ).to_json()
