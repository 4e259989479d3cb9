"""A shipped engine → a session, for servers. Only verified bytes are loaded."""

from __future__ import annotations

from pathlib import Path

from engineworks.engines.backends import backend_facts
from engineworks.engines.backends.base import Session
from engineworks.engines.engine_session import load_verified
from engineworks.engines.passport import Passport
from engineworks.engines.verified import verified_engine
from engineworks.errors import RunError


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
