"""A shipped decoder → a generator, for servers. Only verified bytes are loaded."""

from __future__ import annotations

from pathlib import Path

from engineworks.engines.decoder.generation import Generator, open_generator
from engineworks.engines.engine_session import read_sidecar
from engineworks.engines.loading import check_host
from engineworks.engines.passport import verify_folder
from engineworks.engines.signing import read_trust


def is_decoder(folder: Path) -> bool:
    """Whether the engine in the folder is a decoder's. Only asks which way to verify and load it."""
    return "decoder" in read_sidecar(folder)


def open_shipped_decoder(folder: Path) -> Generator:
    """Load the decoder after checking its digests and, where trusted keys are set, its signature.

    Raises `TrustError`, or `RunError` where this host cannot run it.
    """
    passport = verify_folder(folder, read_trust())
    check_host(passport)
    streams = max(read_sidecar(folder)["decoder"]["streams"])
    return open_generator(folder, passport.target, streams=streams, checked=True)
