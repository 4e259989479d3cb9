"""The engine of a build artifact, or a shipped one → a session, from the very bytes that were verified."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from engineworks.engines.backends import backend, backend_facts, runner
from engineworks.engines.backends.base import PLAIN, LayerTimer, Runner, Serving, Session, TimedLayer
from engineworks.engines.passport import Passport
from engineworks.engines.verified import VerifiedEngine, named, verified_engine
from engineworks.errors import RunError
from engineworks.host.lazy import Arrays


def runner_of(target: Mapping[str, Any]) -> Runner:
    """Return the backend that runs engines of this target. Raises `RunError` where this host cannot."""
    run = runner(target["backend"])
    why = "its backend cannot run engines" if run is None else run.why_not_run(target["compute_capability"])
    if run is None or why is not None:
        raise RunError(f"engines of this target cannot be run here: {why}")
    return run


def load_engine(
    folder: Path, target: Mapping[str, Any], *, serving: Serving = PLAIN, cache: Path | None = None
) -> Session:
    """Load the engine. Raises `RunError` where this host cannot run it, `TrustError` if its bytes were altered."""
    runner_of(target)
    with verified_engine(folder) as engine:
        return load_verified(engine, target, serving=serving, cache=cache)


def load_verified(
    engine: VerifiedEngine, target: Mapping[str, Any], *, serving: Serving = PLAIN, cache: Path | None = None
) -> Session:
    """Load a verified engine. Raises `RunError` where this host cannot run it."""
    run, sidecar = runner_of(target), engine.sidecar
    model_types = sidecar.details.get("model_types", {})
    known = [replace(s, dtype=model_types.get(s.name, s.dtype)) for s in (*sidecar.inputs, *sidecar.outputs)]
    with named(engine.path, engine.source):
        return run.load(engine.path, target["options"], serving=serving, cache=cache, known=known)


def open_engine(folder: Path, passport: Passport) -> Session:
    """Load the engine in the folder from bytes that are those of its passport, which must have been checked.

    Raises `TrustError`, or `RunError` where this host cannot run it.
    """
    check_host(passport)
    with verified_engine(folder, passport) as engine:
        return load_verified(engine, passport.body["engine"]["target"], serving=passport.serving)


def check_host(passport: Passport) -> None:
    """Raises `RunError` where this host cannot run engines of the passport's target."""
    target = passport.target
    why = backend_facts(target.backend).why_not_run(target.compute_capability)
    if why is not None:
        raise RunError(
            f"{passport.id} cannot be run here: {why}",
            hint=f"load it on a host of target '{target.name}', or load another engine of this model",
        )


def time_layers(
    engine: VerifiedEngine, target: Mapping[str, Any], feeds: Arrays, runs: int, cache: Path | None
) -> tuple[str, list[TimedLayer]]:
    """Time the layers of a verified engine. Raises `RunError`."""
    runner_of(target)
    timer: LayerTimer | None = getattr(backend(target["backend"]), "layer_times", None)
    if timer is None:
        raise RunError(f"{backend(target['backend']).TITLE} tells no times of layers")
    known = (*engine.sidecar.inputs, *engine.sidecar.outputs)
    with named(engine.path, engine.source):
        return timer(engine.path, target["options"], feeds, runs, known, cache)
