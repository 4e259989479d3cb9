"""The stored engine → its package on a Triton server: ready, answers, load, reload, and nothing left afterwards."""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import tempfile
from contextlib import closing
from pathlib import Path
from typing import Any

from engineworks.engines.backends.base import Serving
from engineworks.engines.engine_files import PASSPORT_FILE
from engineworks.engines.engine_session import load_engine
from engineworks.engines.passport import read_passport
from engineworks.engines.sidecar import Sidecar
from engineworks.engines.signing import TRUSTED_KEYS, Trust
from engineworks.errors import RunError
from engineworks.host.triton import NO_SERVER, InstalledServer, RunningServer, find_server
from engineworks.measure.accuracy_report import Accuracy
from engineworks.measure.serving_report import ServingReport
from engineworks.measure.slopes import slopes
from engineworks.package.draft import write_draft
from engineworks.package.package import PackagedEngine, write_models
from engineworks.package.triton_engines import model_name
from engineworks.recipe.batch import output_axes
from engineworks.recipe.package_settings import PackageSettings
from engineworks.recipe.samples import SampleFile, samples_from_json
from engineworks.serving.answers import Question, ask, ask_at_once, questions, refusals, spread
from engineworks.serving.batching import Batching, largest_rate, sweep
from engineworks.serving.batching import settings as batching_settings
from engineworks.serving.client import PROTOCOLS, Client
from engineworks.serving.load import Offer, offer_load
from engineworks.serving.metrics import OtherWork, watching
from engineworks.serving.server import StartedServer, available_backends, started
from engineworks.serving.soak import cold_starts, reload_model, swap_under_traffic
from engineworks.steps.job import StepJob
from engineworks.steps.reference import read_reference
from engineworks.steps.task_metric import TaskComparison

CLIENTS = 4
"""Clients that ask at once."""

SINGLE = 64
"""Samples that a load takes its queries from."""

RELOADS = 3

SWEEP_S = 5.0
"""Most seconds of one try of a sweep, which makes some fifty."""

DELAYS_US = (0, 500, 2000)
"""Delays of the dynamic batcher that a sweep tries, in microseconds."""

SEARCH_FROM = 50.0
"""Queries a second at which a search begins."""


def run(job: StepJob) -> None:
    """A running server without a repository here is asked for the model that it has under the package's name."""
    server = find_server()
    if server is None:
        raise RunError(NO_SERVER)
    samples = samples_from_json(job.paths("evaluation"), {**job.params["samples"], "labels": job.params["labels"]})
    settings = PackageSettings.from_json(job.params["package"])
    with tempfile.TemporaryDirectory(prefix="engineworks-serve-") as folder:
        engine = _packaged(job, Path(folder))
        repository = server.repository if isinstance(server, RunningServer) else Path(folder) / "models"
        if repository is None:
            assert isinstance(server, RunningServer)
            model = model_name(settings.model, engine.passport)
            _write(job, _serve(job, server, None, model, samples, settings, placed=False))
            return
        package = settings.swept() if job.params.get("sweep") else settings
        (written,) = write_models(
            package, samples, [engine], Path(folder) / "package", available_backends(server), job.echo
        )
        place = _placed(written, repository)
        try:
            _write(job, _on_server(job, server, repository, place.name, samples, settings))
        finally:
            if isinstance(server, RunningServer):
                _take_away(server, place)


def _write(job: StepJob, report: dict[str, Any]) -> None:
    job.write(ServingReport.from_json(report, f"{job.id}: {ServingReport.FILE}"))


def _placed(written: Path, repository: Path) -> Path:
    """Move a model into a repository. Raises `RunError` where another one has its place."""
    repository.mkdir(exist_ok=True)
    place = repository / written.name
    if place.exists():
        raise RunError(f"{repository}: holds a model '{place.name}' already", hint="take it out, or serve elsewhere")
    shutil.move(written, place)
    return place


def _on_server(
    job: StepJob, server: InstalledServer | RunningServer, repository: Path, model: str, samples: SampleFile,
    settings: PackageSettings,
) -> dict[str, Any]:  # fmt: skip
    if isinstance(server, RunningServer):
        return _serve(job, server, None, model, samples, settings)
    signed = "passport" in job.unkeyed  # a draft is not: only its digests are checked
    env = {name: value for name, value in os.environ.items() if name != TRUSTED_KEYS or signed}
    with started(server, repository, env=env) as process:
        report = _serve(job, process.addresses, process, model, samples, settings)
        if job.params.get("swaps"):
            report["swaps"] = _swaps(job, process, repository, model, samples)
    return {**report, "start_s": process.start_s}


def _serve(
    job: StepJob, addresses: RunningServer, process: StartedServer | None, model: str, samples: SampleFile,
    settings: PackageSettings, *, placed: bool = True,
) -> dict[str, Any]:  # fmt: skip
    """placed: whether the package is in the server's repository, to be loaded."""
    params = job.params
    session = load_engine(job.inputs["build"], params["target"], serving=Serving.from_json(params["serving"]))
    with closing(session):
        asked = questions(session, list(samples.batches(params["batches"])))
        smallest = max(1, min(params["batches"]))
        single = questions(session, [f for f, _ in zip(samples.batches([smallest]), range(SINGLE), strict=False)])
        with Client(addresses.grpc, "grpc") as client:
            report = _loaded(job, client, model) if placed else _found(job, client, model, settings)
            if _measured(settings) or job.params.get("sweep"):
                report["batching"] = _sweep(job, client, addresses, model, single, settings)
            if _measured(settings):
                client.load(model, Batching.from_json(report["batching"]["recommended"]).applied(client.config(model)))
            report["answers"], report["metric"] = _answers(job, addresses, model, asked, samples)
            own = spread(session, asked) if settings.max_batch else 0.0
            report["spread"] = own if math.isfinite(own) else None
            report["refusals"] = refusals(client, model, single[0], session.inputs, settings.max_batch)
            report["load"] = _load(job, addresses, process, model, single)
            if process is not None:
                report["reload"] = _reload(job, client, process, model, single[0])
                client.load(model)
            if job.params.get("cold"):
                with tempfile.TemporaryDirectory(prefix="engineworks-cache-") as cache:
                    report["cold"] = cold_starts(client, model, single[0], client.config(model), cache)
        return report


def _loaded(job: StepJob, client: Client, model: str) -> dict[str, Any]:
    report = {"server": client.require_loading(), "model": model, "ready_s": client.load(model)}
    job.echo(f"ready after {report['ready_s']:.2f} s")
    return {**report, "backend": client.config(model).get("backend")}


def _found(job: StepJob, client: Client, model: str, settings: PackageSettings) -> dict[str, Any]:
    """Look for a model on a server that loads none for us. Raises `RunError` where that does not suffice."""
    server = client.metadata()
    if not client.ready(model):
        raise RunError(
            f"the server at {client.address} has no model '{model}'",
            hint="load the package there, or add '&repository=FOLDER' to ENGINEWORKS_TRITON",
        )
    if _measured(settings) or job.params.get("sweep") or job.params.get("cold"):
        raise RunError("loads are measured in a server's repository", hint="add '&repository=FOLDER'")
    return {"server": server, "model": model}


def _answers(
    job: StepJob, addresses: RunningServer, model: str, asked: list[Question], samples: SampleFile
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Ask the whole evaluation set by each protocol and by several clients at once; the metric is that by gRPC."""
    answers: dict[str, Any] = {}
    metric = None
    for protocol in PROTOCOLS:
        kept: dict[int, Any] = {}
        with Client(getattr(addresses, protocol), protocol) as client:
            answers[protocol] = ask(client, model, asked, keep=kept.__setitem__).to_json()
        if protocol == "grpc" and len(kept) == len(asked):
            metric = _metric(job, [kept[index] for index in range(len(asked))], samples)
        job.echo(f"{protocol}: {answers[protocol]['equal']} of {answers[protocol]['requests']} answers equal")
    answers[f"{CLIENTS} clients"] = ask_at_once(addresses.grpc, "grpc", model, asked, CLIENTS).to_json()
    return answers, metric


def _metric(job: StepJob, served: list[Any], samples: SampleFile) -> dict[str, Any] | None:
    """Return the task metric of the served answers next to that of the evaluated engine; None where there is none."""
    if not {"compare", "reference"} <= job.inputs.keys():  # a champion that was judged elsewhere
        return None
    judged = Accuracy.read(job.inputs["compare"]).metric
    if judged is None:
        return None
    axes = output_axes(samples.specs, Sidecar.read(job.inputs["build"]).outputs)
    task = TaskComparison(job, samples, axes)
    feeds = samples.batches(job.params["batches"])
    for given, got, wanted in zip(feeds, served, read_reference(job.inputs["reference"]), strict=True):
        task.add(given, got, wanted)
    result = task.result()
    return {"name": judged.name, "judged": judged.engine, "served": result.engine if result else None}


def _load(
    job: StepJob, addresses: RunningServer, process: StartedServer | None, model: str, single: list[Question]
) -> dict[str, Any] | None:
    wanted = job.params["load"]
    if wanted is None:
        return None
    pids = (lambda: process.tree) if process is not None else tuple
    others = OtherWork(pids)
    offer = Offer(wanted["qps"] or SEARCH_FROM, wanted["p99_ms"], wanted["seconds"])
    with watching(addresses.metrics, model, pids) as watched:
        found = (largest_rate if wanted["find_qps"] else offer_load)(addresses.grpc, model, single, offer)
    return {**found, "others": others.share(), "watched": watched.summary()}


def _reload(job: StepJob, client: Client, process: StartedServer, model: str, question: Question) -> dict[str, Any]:
    times = int(job.params.get("reloads", RELOADS))
    client.unload(model)
    found = reload_model(client, process, model, question, times, job.echo)
    return {**found, "slopes": {name: one.to_json() for name, one in slopes(found["readings"]).items()}}


def _sweep(
    job: StepJob, client: Client, addresses: RunningServer, model: str, single: list[Question], package: PackageSettings
) -> dict[str, Any]:
    """Measure settings of the dynamic batcher in one run of the server; the best is the recommendation."""
    wanted = job.params["load"]
    offer = Offer(wanted["qps"] or SEARCH_FROM, wanted["p99_ms"], min(SWEEP_S, wanted["seconds"]))
    tried = batching_settings(package.max_batch, DELAYS_US)
    points = sweep(client, addresses.grpc, model, single, offer, tried, job.echo)
    none = max(point["rate"] for point in points if point["preferred"] is None)
    best = max(points, key=lambda point: point["rate"])
    return {"points": points, "recommended": best, "gain": best["rate"] / none if none else None}


def _measured(package: PackageSettings) -> bool:
    return package.triton.dynamic_batching is not None and package.triton.dynamic_batching.measured


def _swaps(job: StepJob, process: StartedServer, repository: Path, model: str, samples: SampleFile) -> dict[str, Any]:
    """Exchange the model's folder for an equal one under traffic."""
    session = load_engine(job.inputs["build"], job.params["target"], serving=Serving.from_json(job.params["serving"]))
    with closing(session):
        asked = questions(session, [f for f, _ in zip(samples.batches(job.params["batches"]), range(8), strict=False)])
    with tempfile.TemporaryDirectory(prefix="engineworks-version-") as folder:
        version = shutil.copytree(repository / model, Path(folder) / model)
        return swap_under_traffic(process, repository, model, [version], [asked], int(job.params["swaps"]))


def _packaged(job: StepJob, folder: Path) -> PackagedEngine:
    """Return the engine with the given passport, or with a draft: the real one holds this step's verdict."""
    passport = Path(job.unkeyed.get("passport", folder / PASSPORT_FILE))
    if "passport" not in job.unkeyed:
        write_draft(passport, job.inputs["build"], job.id.rpartition("/")[0], job.params["serving"])
    return PackagedEngine(job.inputs["build"], read_passport(passport, Trust()))


def _take_away(server: RunningServer, place: Path) -> None:
    """Leave the running server as it was."""
    with contextlib.suppress(RunError), Client(server.grpc, "grpc") as client:
        client.unload(place.name)
    shutil.rmtree(place, ignore_errors=True)
