"""A shipped decoder → a generator, for servers. Only verified bytes are loaded."""

from __future__ import annotations

from pathlib import Path

from engineworks.engines.decoder.generation import Generator, open_generator
from engineworks.engines.loading import check_host
from engineworks.engines.passport import Passport
from engineworks.engines.sidecar import Sidecar
from engineworks.engines.verified import verified_engine


def is_decoder(folder: Path) -> bool:
    """Whether the engine in the folder is a decoder's. Only asks in which way to load it."""
    return Sidecar.read(folder).decoder is not None


def open_shipped_decoder(folder: Path, passport: Passport) -> Generator:
    """Load the decoder from bytes that are those of its passport, which must have been checked.

    Raises `TrustError`, or `RunError` where this host cannot run it.
    """
    check_host(passport)
    with verified_engine(folder, passport) as engine:
        streams = max(engine.sidecar.decoder.streams) if engine.sidecar.decoder else 1
        target = passport.body["engine"]["target"]
        return open_generator(engine, target, streams=streams, serving=passport.serving)
