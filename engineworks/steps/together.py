"""Packages of several engines on one server at once. A command's step: it is in no build."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from engineworks.engines.backends import backend
from engineworks.engines.backends._feeds import narrowed_feeds
from engineworks.engines.passport import read_passport
from engineworks.engines.signing import Trust
from engineworks.errors import RunError
from engineworks.host.memory import proportional_kib
from engineworks.host.nvml import used_mib
from engineworks.host.triton import NO_SERVER, InstalledServer, find_server
from engineworks.package.package import PackagedEngine, write_models
from engineworks.plan.kinds import TOGETHER_FILE
from engineworks.recipe.package_settings import PackageSettings
from engineworks.recipe.samples import samples_from_json
from engineworks.serving.answers import Question
from engineworks.serving.client import Client
from engineworks.serving.server import started
from engineworks.serving.together import serve_together
from engineworks.steps.job import StepJob

ASKED = 64
"""Samples of each model that its client asks."""


def run(job: StepJob) -> None:
    """Write `together.json`: `serve_together`, with the engine of each model, and whose memory was counted."""
    server = find_server()
    if not isinstance(server, InstalledServer):
        raise RunError("several models need a server that can be started here" if server else NO_SERVER)
    with tempfile.TemporaryDirectory(prefix="engineworks-together-") as folder:
        repository = Path(folder, "models")
        repository.mkdir()
        engines, asked, on_gpu = dict[str, str](), dict[str, list[Question]](), False
        for number, part in enumerate(job.params["parts"]):
            engine = PackagedEngine(Path(part["folder"]), read_passport(Path(part["passport"]), Trust()))
            (model,) = _write(part, engine, Path(folder, str(number)), server, job.echo)
            model.rename(repository / model.name)
            engines[model.name], asked[model.name] = engine.passport.id, _questions(part, engine)
            on_gpu = on_gpu or backend(engine.backend).TRAITS.on_gpu
        with started(server, repository) as process, Client(process.addresses.grpc, "grpc") as client:

            def memory_mib() -> float:
                if on_gpu and (used := used_mib()) is not None:
                    return used
                return sum(map(proportional_kib, process.tree)) / 1024

            report = serve_together(client, process.addresses.grpc, asked, memory_mib, job.params["seconds"])
    place = "the GPU's memory" if on_gpu else "the host's memory"
    job.write_json(TOGETHER_FILE, {**report, "engines": engines, "place": place})


def _samples(part: Mapping[str, Any]) -> Any:
    return samples_from_json(part["evaluation"], {**part["samples"], "labels": part["labels"]})


def _write(
    part: Mapping[str, Any], engine: PackagedEngine, out: Path, server: InstalledServer, echo: Callable[[str], object]
) -> list[Path]:
    settings = PackageSettings.from_json(part["package"])
    return write_models(settings, _samples(part), [engine], out, server.available, echo)


def _questions(part: Mapping[str, Any], engine: PackagedEngine) -> list[Question]:
    batches = _samples(part).batches([max(1, min(part["batches"]))])
    inputs = engine.passport.facts.engine.inputs
    return [Question(narrowed_feeds(inputs, feed), {}) for feed, _ in zip(batches, range(ASKED), strict=False)]
