"""A shipped engine → a session, for servers. Only verified bytes are loaded."""

from __future__ import annotations

from pathlib import Path

from engineworks.engines.backends import backend_facts
from engineworks.engines.backends.base import Session
from engineworks.engines.engine_session import load_engine
from engineworks.engines.passport import Passport, verify_folder
from engineworks.engines.signing import read_trust
from engineworks.errors import RunError


def open_engine(folder: Path) -> Session:
    """Load the engine in the folder after checking its digests and, where trusted keys are set, its signature.

    Raises `TrustError`, or `RunError` where this host cannot run it.
    """
    passport = verify_folder(folder, read_trust())
    check_host(passport)
    return load_engine(folder, passport.body["engine"]["target"], serving=passport.serving, checked=True)


def check_host(passport: Passport) -> None:
    """Raises `RunError` where this host cannot run engines of the passport's target."""
    target = passport.target
    why = backend_facts(target.backend).why_not_run(target.compute_capability)
    if why is not None:
        raise RunError(
            f"{passport.id} cannot be run here: {why}",
            hint=f"load it on a host of target '{target.name}', or load another engine of this model",
        )
