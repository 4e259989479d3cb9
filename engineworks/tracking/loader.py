"""`engineworks.load`: a champion of the registry → a session. Everything is verified before anything is loaded."""

from __future__ import annotations

import re
from pathlib import Path
from tempfile import TemporaryDirectory

from engineworks.engines.engine_session import open_engine
from engineworks.engines.signing import read_trust
from engineworks.errors import InputError
from engineworks.settings import read_settings
from engineworks.tracking.engine_model import LoadedEngine
from engineworks.tracking.runs import open_tracking

URI = re.compile(r"models:/(?P<model>[^/@]+)(@(?P<alias>[^/@]+)|/(?P<version>[1-9][0-9]{0,17}))")


def load(uri: str) -> LoadedEngine:
    """See `engineworks.load`."""
    named = URI.fullmatch(uri)
    if named is None:
        raise InputError(f"{uri!r} names no registered engine", hint="write models:/digits@champion-cpu-fp16")
    settings, trust = read_settings(), read_trust()
    tracking = open_tracking(settings.artifacts, settings.tracking_uri)
    if not tracking.exists():
        raise InputError(f"{uri}: there is no MLflow database", hint="set MLFLOW_TRACKING_URI or ENGINEWORKS_ARTIFACTS")
    with TemporaryDirectory(prefix="engineworks-load-") as folder:
        version = int(named["version"]) if named["version"] else None
        fetched = tracking.registry().fetch(named["model"], version, named["alias"], Path(folder), trust)
        return LoadedEngine(open_engine(fetched.folder, fetched.passport))
